"""Small models whose maps are known, and what is around them."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Attention",
    "Block",
    "SoftmaxAttention",
    "Tiny",
    "changes",
    "everything",
    "expected_map",
    "numbers",
    "qkv",
]


class Attention(nn.Module):
    """Self-attention by the fused kernel, from one fused projection."""

    def __init__(self, dim: int = 16, num_heads: int = 4, is_causal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.is_causal = num_heads, is_causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> Tensor:
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class SoftmaxAttention(Attention):
    """The same step by step; `attn` is the map."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unbind(0)
        attn = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        attn = attn.softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.attn = attention()
        self.mlp = nn.Sequential(nn.Linear(16, 16), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Tiny(nn.Module):
    """`blocks.{0,1,…}.attn` and `blocks.….mlp`, then `head`."""

    def __init__(self, depth: int = 3, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(attention) for _ in range(depth))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def numbers(tokens: int = 6, batch: int = 2) -> Tensor:
    return torch.randn(batch, tokens, 16)


def qkv(tokens: int = 7, heads: int = 2, dim: int = 8, batch: int = 1) -> list[Tensor]:
    return [2 * torch.randn(batch, heads, tokens, dim) for _ in range(3)]


def expected_map(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Any:
    """Return `softmax(q kᵀ / √d + mask)` in float64."""
    scores = q.detach().double() @ k.detach().double().transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask.double()
    return scores.softmax(-1).numpy()


def everything(model: nn.Module | None = None) -> dict[tuple[Any, ...], Any]:
    """Return all attributes of torch, of a model and its classes, and of all loaded modules."""
    owners: dict[tuple[Any, ...], Any] = {
        ("module", name): module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and not _is_ours(name)
    }
    owners |= {("class", cls.__name__): cls for cls in (torch.Tensor, nn.Module)}
    transformers = sys.modules.get("transformers.modeling_utils")
    if transformers is not None:
        for cls in transformers.AttentionInterface.__mro__[:-1]:
            owners["class", cls.__name__] = cls
    for path, module in () if model is None else model.named_modules():
        owners["instance", path] = module
        for cls in type(module).__mro__[:-1]:
            owners["class", cls.__module__, cls.__qualname__] = cls
    found = {}
    for key, owner in owners.items():
        found.update({(*key, name): value for name, value in list(vars(owner).items())})
    return found


def changes(before: dict[tuple[Any, ...], Any], after: dict[tuple[Any, ...], Any]) -> list[Any]:
    """Return which attributes are others, new or gone; modules may be loaded meanwhile."""
    known = {key[:-1] for key in before}
    found = []
    for key in {*before, *after}:
        if key[:-1] not in known or key[-1] in ("__warningregistry__", "__annotations__"):
            continue
        old, new = before.get(key, "absent"), after.get(key, "absent")
        if old is not new and not isinstance(new, ModuleType):
            found.append((key, old, new))
    return found


def _is_ours(name: str) -> bool:
    tools = {"pytest", "_pytest", "pluggy", "logging", "hypothesis", "xdist", "execnet"}
    return name.split(".")[0] in {"visualizer", "tests", *tools}
