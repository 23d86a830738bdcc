"""The whole map in float64, from the definition; and records to read it from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visualizer.attention import AttentionCall, AttentionMap, Mask


@dataclass
class Record:
    """What the interceptor would hand over."""

    held: Any
    module_path: str | None = "blocks.3.attn"
    layer: int | None = 3
    call: int = 0
    step: int | None = 0
    source: str = "sdpa"
    is_causal: bool | None = None
    confirmed: bool | None = True

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return tuple(self.held.shape)

    def read(self) -> Any:
        return self.held


def map_of(call: Any, **facts: Any) -> AttentionMap:
    return AttentionMap(Record(call, **facts))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def random_call(
    *,
    batch: int = 2,
    heads: int = 4,
    key_heads: int = 2,
    queries: int = 7,
    keys: int = 9,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> AttentionCall:
    query = normal(batch, heads, queries, dim, seed=1, dtype=dtype)
    key = normal(batch, key_heads, keys, dim, seed=2, dtype=dtype)
    return AttentionCall(query, key, options.pop("scale", 0.6), **options)


def to_numpy(tensor: Tensor) -> Any:
    return tensor.detach().double().numpy()


def visible_keys(mask: Mask, shape: tuple[int, ...]) -> Any:
    """Return what is visible, key by key."""
    queries, keys = shape[2:]
    seen = np.ones(shape, bool)
    if mask.causal is not None:
        for i in range(queries):
            for j in range(keys):
                behind = mask.window is not None and j <= i + mask.causal - mask.window
                seen[:, :, i, j] &= j <= i + mask.causal and not behind
    if mask.spans is not None:
        first, last = (np.broadcast_to(end.numpy(), shape[:3])[..., None] for end in mask.spans)
        seen &= (np.arange(keys) >= first) & (np.arange(keys) <= last)
    for part in (mask.keys, mask.visible):
        if part is not None:
            seen = seen & part.numpy()
    return seen


def masked_scores(call: AttentionCall) -> Any:
    query, key = to_numpy(call.query), to_numpy(call.key)
    key = np.repeat(key, query.shape[1] // key.shape[1], axis=1)
    scores = call.scale * np.matmul(query, np.swapaxes(key, -1, -2))
    if call.softcap is not None:
        scores = call.softcap * np.tanh(scores / call.softcap)
    if call.mask.bias is not None:
        scores = scores + to_numpy(call.mask.bias)
    return np.where(visible_keys(call.mask, call.shape), scores, call.mask.hidden)


def logsumexp(call: AttentionCall) -> Any:
    scores = masked_scores(call)
    if call.sinks is not None:
        sinks = np.broadcast_to(to_numpy(call.sinks)[:, None, None], (*scores.shape[:3], 1))
        scores = np.concatenate([scores, sinks], -1)
    top = scores.max(-1)
    shift = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(scores - shift[..., None]).sum(-1))


def whole_map(call: AttentionCall) -> Any:
    scores = masked_scores(call)
    extra = np.full((*scores.shape[:3], 1), -math.inf)
    if call.sinks is not None:
        extra[:] = to_numpy(call.sinks)[:, None, None]
    scores = np.concatenate([scores, extra], -1)
    top = scores.max(-1, keepdims=True)
    powers = np.exp(scores - np.where(np.isfinite(top), top, 0))
    with np.errstate(invalid="ignore"):
        weights = powers / powers.sum(-1, keepdims=True)
    return np.where(np.isfinite(top), weights, call.empty_rows)[..., :-1]


def entropy(weights: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = weights / weights.sum(-1, keepdims=True)
        logs = np.log(np.where(shares > 0, shares, 1))
        return -(shares * logs).sum(-1)


def received(weights: Any) -> Any:
    result = np.full((*weights.shape[:2], weights.shape[3]), math.nan)
    for place in np.ndindex(*weights.shape[:2]):
        rows = [row for row in weights[place] if row.sum() > 0]
        if rows:
            result[place] = np.mean(rows, axis=0)
    return result
