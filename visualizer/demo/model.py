"""A small vision transformer, written as people write theirs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visualizer import get_local
from visualizer.demo.initialization import grid_embedding, start_local

__all__ = ["Attention", "Block", "VisionTransformer"]


class Attention(nn.Module):
    """Self-attention with several heads. Its weights are in a local, `attn`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        start_local(self.qkv, self.proj, num_heads)

    @get_local("attn")
    def forward(self, x: Tensor) -> Tensor:
        """Let each token collect from all: shape `(batch, token, dim)` in and out."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = attn.softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(batch, tokens, dim)
        projected: Tensor = self.proj(x)
        return projected


class Block(nn.Module):
    """Attention, then an MLP; each normalised before and added to what came in."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Shape `(batch, token, dim)` in and out."""
        x = x + self.attn(self.norm1(x))
        mixed: Tensor = self.mlp(self.norm2(x))
        return x + mixed


class VisionTransformer(nn.Module):
    """Classify a gray picture by a CLS token and its patches (Dosovitskiy et al., 2021).

    Patches of 8×8 pixels are embedded by three small convolutions in place of a linear map, with
    which a transformer learns from fewer pictures (Xiao et al., 2021, "Early convolutions help
    transformers see better").
    """

    def __init__(
        self,
        *,
        grid: int = 12,
        dim: int = 72,
        depth: int = 6,
        num_heads: int = 6,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, dim, kernel_size=3, stride=2, padding=1),
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid**2, dim))
        self.blocks = nn.Sequential(*[Block(dim, num_heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        with torch.no_grad():
            self.pos_embed[:, 1:] = 0.7 * grid_embedding(grid, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes' logits, shape `(batch, 10)`, of pictures `(batch, 1, 96, 96)`."""
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1)
        return self.classify(x + self.pos_embed)

    def classify(self, tokens: Tensor) -> Tensor:
        """Return the classes' logits of embedded tokens `(batch, token, dim)`, CLS first."""
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits
