"""Masks of every kind, for maps of 2 items, 4 heads, 7 queries and 9 keys."""

from __future__ import annotations

import math

import torch

from tests.attention.reference import normal
from visualizer.attention import Mask

LOWEST = torch.finfo(torch.float32).min


def _booleans(*shape: int, seed: int) -> torch.Tensor:
    return normal(*shape, seed=seed) > -0.3


def _padding() -> torch.Tensor:
    keys = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    keys[0, ..., :4] = False  # left
    keys[1, ..., 6:] = False  # right
    return keys


def _random_spans(heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    first = (normal(2, heads, 7, seed=5) * 2 + 3).clamp(0, 8).int()
    last = (first + normal(2, heads, 7, seed=6) * 3 + 2).clamp(-1, 8).int()
    return first, last


def _biased(share: float) -> torch.Tensor:
    bias = normal(1, 4, 7, 9, seed=7)
    bias[normal(1, 4, 7, 9, seed=8) > share] = -math.inf
    bias[0, 1, 3] = -math.inf
    return bias


MASKS: dict[str, Mask] = {
    "none": Mask(),
    "causal": Mask(causal=0),
    "causal, queries are the last": Mask(causal=2),
    "causal, more to come": Mask(causal=20),
    "causal, empty rows": Mask(causal=-3),
    "causal, empty rows are even": Mask(causal=-3, hidden=LOWEST),
    "window": Mask(causal=2, window=3),
    "window, empty rows": Mask(causal=5, window=2),
    "keys": Mask(keys=_padding()),
    "keys of all items": Mask(keys=_padding()[:1]),
    "no keys": Mask(keys=torch.zeros(1, 1, 1, 9, dtype=torch.bool)),
    "no keys, even": Mask(keys=torch.zeros(1, 1, 1, 9, dtype=torch.bool), hidden=LOWEST),
    "causal and keys of all items": Mask(causal=0, keys=_padding()[:1]),
    "causal and keys": Mask(causal=0, keys=_padding()),
    "causal and keys, even": Mask(causal=0, keys=_padding(), hidden=LOWEST),
    "causal and keys, offset": Mask(causal=2, keys=_padding()),
    "spans": Mask(spans=_random_spans(4)),
    "spans for all heads": Mask(spans=_random_spans(1)),
    "spans and keys": Mask(spans=_random_spans(1), keys=_padding()),
    "spans and keys, even": Mask(spans=_random_spans(1), keys=_padding(), hidden=LOWEST),
    "visible": Mask(visible=_booleans(2, 4, 7, 9, seed=3)),
    "visible, one for all": Mask(visible=_booleans(7, 9, seed=4)),
    "visible and causal": Mask(causal=1, visible=_booleans(2, 1, 7, 9, seed=4)),
    "hidden is not so little": Mask(causal=-2, keys=_padding(), hidden=-1e4),
    "bias": Mask(bias=normal(1, 4, 7, 9, seed=7)),
    "bias for items": Mask(bias=normal(2, 1, 1, 9, seed=7)),
    "bias, half": Mask(bias=normal(1, 4, 7, 9, seed=7, dtype=torch.bfloat16)),
    "bias that hides": Mask(bias=_biased(0.2)),
    "bias and causal": Mask(causal=0, bias=_biased(0.9)),
    "bias and even rows": Mask(causal=-1, bias=normal(1, 4, 7, 9, seed=7), hidden=LOWEST),
}
