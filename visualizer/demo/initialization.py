"""How the model starts: with attention that looks around each patch, as trained ones have it."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

__all__ = ["grid_embedding", "start_local"]

_STRENGTH: Final = 0.7
"""Of the identity in the product of query and key weights, and of the noise beside it."""
_VALUE_STRENGTH: Final = 0.4
"""The same for value and projection, where the identity is subtracted."""


def grid_embedding(grid: int, dim: int) -> Tensor:
    """Return sines and cosines of rows and columns, shape `(grid · grid, dim)`.

    As Beyer et al., 2022 ("Better plain ViT baselines for ImageNet-1k"), with a shorter longest
    wave, since the grid is small.
    """
    waves = 100.0 ** -(torch.arange(dim // 4) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    y, x = rows.reshape(-1, 1) * waves, columns.reshape(-1, 1) * waves
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)


@torch.no_grad()
def start_local(qkv: nn.Linear, proj: nn.Linear, num_heads: int) -> None:
    """Give attention the weights that it tends to in training (Trockman & Kolter, 2023).

    The product of a head's query and key weights is near the identity, so that tokens attend to
    those that resemble them, among others by their place; that of value and projection is near
    minus the identity. With it a small transformer needs fewer pictures.
    """
    dim = proj.in_features
    size = dim // num_heads
    queries, keys, values = qkv.weight.split(dim)
    for head in range(num_heads):
        rows = slice(head * size, (head + 1) * size)
        left, right = _factors(_STRENGTH, _STRENGTH, dim)
        queries[rows], keys[rows] = left[:, :size].T, right[:, :size].T
    left, right = _factors(_VALUE_STRENGTH, -_VALUE_STRENGTH, dim)
    proj.weight.copy_(left)
    values.copy_(right.T)
    qkv.bias.zero_()
    proj.bias.zero_()


def _factors(noise: float, identity: float, dim: int) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product `left @ right.T` is noise and a share of the identity."""
    product = noise * torch.randn(dim, dim) / dim**0.5 + identity * torch.eye(dim)
    left, scale, right = torch.linalg.svd(product)
    return left * scale.sqrt(), right.T * scale.sqrt()
