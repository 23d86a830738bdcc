"""A small vision transformer, and its attention maps by other means. Needs torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Attention", "VisionTransformer", "attention_maps"]


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        attn = attn.softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attn(self.norm(x))


class VisionTransformer(nn.Module):
    """Tokens of patches, shape `(batch, 196, dim)`, to features; a CLS token is put before."""

    def __init__(self, dim: int = 48, num_heads: int = 6, depth: int = 12) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


def attention_maps(model: VisionTransformer, patches: torch.Tensor) -> list[Any]:
    """Recompute every layer's map from the inputs of its attention, as arrays."""
    maps: list[Any] = []

    def keep(attention: Attention, inputs: tuple[torch.Tensor]) -> None:
        (x,) = inputs
        q, k, _ = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        maps.append(scores.softmax(-1).detach().numpy())

    hooks = [block.attn.register_forward_pre_hook(keep) for block in model.blocks]
    model(patches)
    for hook in hooks:
        hook.remove()
    return maps
