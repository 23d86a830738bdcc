"""How alike the heads are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from visualizer.analysis.arrays import Floats, to_weights
from visualizer.analysis.lazy import is_lazy, is_map
from visualizer.analysis.pieces import Maps, each, maps_of_map
from visualizer.analysis.rows import Rows, stacked
from visualizer.errors import ShapeError

__all__ = ["head_similarity"]

_CACHED_BYTES: Final = 2**20
"""Rows of all heads that are compared at a time: more would not stay in the processor's cache."""

_NOTHING: Final = 1e-300
"""Stands for 0 in a logarithm, which is then multiplied with 0."""


def head_similarity(weights: Any, *, across_layers: bool = False) -> Floats:
    """Return the Jensen–Shannon divergence of each two heads (Clark et al., 2019, §6).

    For each query, the two distributions over the keys are compared: 0 is the same, log 2 has no
    key in common. The queries are averaged, where the paper adds them up. The square root of the
    result is a metric.

    Args:
        weights: Shape `(..., head, query, key)`; rows sum to 1. Or an `AttentionMap`, or a list of
            them, which are gone through row by row; there, what goes to a sink does not count, nor
            do queries that see no key.
        across_layers: The first axis is layers, and heads are compared with those of all layers.
            Takes a list of `AttentionMap`s, too, as `captured.attention`.
    Returns:
        Shape `(..., head, head)`, nats; NaN where no query sees a key. Across layers the first
        axis is gone, and there are `layer · head` heads, those of the first layer first.
    Raises:
        ShapeError: Fewer than three axes, or than four across layers; maps of unequal shapes.
        NotWeightsError: Rows that are not weights.

    Example:
        >>> head_similarity([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]).round(3)
        array([[0.   , 0.   , 0.693],
               [0.   , 0.   , 0.693],
               [0.693, 0.693, 0.   ]])
    """
    if is_lazy(weights):
        return _across(weights) if across_layers else each(weights, _divergences)
    array = to_weights(weights)
    if array.ndim < 3 + across_layers:
        layer = "layer, " if across_layers else ""
        raise ShapeError(
            f"weights has shape {array.shape}; expected ({layer}…, head, query, key), to compare "
            f"the heads"
        )
    if across_layers:
        array = np.moveaxis(array, 0, -4)
        array = array.reshape(*array.shape[:-4], -1, *array.shape[-2:])
    return each(array, _divergences)


def _across(weights: Any) -> Floats:
    maps = [] if is_map(weights) else list(weights)
    if not maps or not all(is_map(one) for one in maps):
        raise ShapeError(
            "across layers, one AttentionMap for each layer is compared, in a list. For the last "
            "call of each layer: [calls[-1] for calls in captured.attention.layers]"
        )
    shapes = sorted({one.shape for one in maps})
    if len(shapes) > 1:
        raise ShapeError(f"maps have the shapes {shapes}; heads of one shape can be compared")
    layers = [maps_of_map(one).items for one in maps]
    return _of_items([stacked(rows) for rows in zip(*layers, strict=True)])


def _divergences(maps: Maps) -> Floats:
    return _of_items(maps.items)


def _of_items(items: Sequence[Rows]) -> Floats:
    return np.stack([_of_rows(rows).astype(rows.dtype) for rows in items])


def _of_rows(rows: Rows) -> NDArray[np.float64]:
    """Return the divergences of the heads, averaged over the queries that both see with."""
    heads, _, keys = rows.shape
    total, count = np.zeros((heads, heads)), np.zeros((heads, heads))
    step = max(1, _CACHED_BYTES // (heads * keys * 8))
    for _, block in rows.blocks():
        for start in range(0, block.shape[1], step):
            _add(block[:, start : start + step], total, count)
    with np.errstate(invalid="ignore"):
        return np.maximum((total + total.T) / count, 0)


def _add(weights: Floats, total: NDArray[np.float64], count: NDArray[np.float64]) -> None:
    """Add up what some queries give, in float64: alike heads leave little of their entropies."""
    sums = weights.sum(axis=-1, keepdims=True, dtype=np.float64)
    seeing = sums > 0
    shares = np.where(seeing, weights, 0) / np.where(seeing, sums, 1)
    seen = seeing[..., 0].astype(np.float64)
    count += seen @ seen.T
    own = _spread(shares)
    for head in range(len(shares) - 1):
        rest = slice(head + 1, None)
        apart = math.log(2) + (own[head] + own[rest] - _spread(shares[head] + shares[rest])) / 2
        total[head, rest] += (apart * seen[head] * seen[rest]).sum(axis=-1)


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `Σ a·log(a)` over the last axis."""
    logs = np.maximum(values, _NOTHING)
    np.log(logs, out=logs)
    logs *= values
    return logs.sum(axis=-1)
