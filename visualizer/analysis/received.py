"""How much attention keys get."""

from __future__ import annotations

from typing import Any

import numpy as np

from visualizer.analysis.arrays import Floats
from visualizer.analysis.choices import check_between
from visualizer.analysis.lazy import is_computed
from visualizer.analysis.pieces import Maps, average_queries, each

__all__ = ["received", "sink_mass"]


def received(weights: Any) -> Floats:
    """Return how much attention each key gets, averaged over the queries (Zhang et al., 2023).

    The paper, H2O, adds the queries up and calls the keys that get the most heavy hitters; the
    order is the same.

    Args:
        weights: Shape `(..., query, key)`; rows sum to 1. Or an `AttentionMap`, or a list of them,
            which are gone through row by row; there, queries that see no key do not count.
    Returns:
        Shape `(..., key)`; sums to 1 over the keys, or less where there are sinks. NaN where no
        query sees a key.
    Raises:
        ShapeError: Fewer than two axes.
        NotWeightsError: Rows that are not weights.

    Example:
        >>> received([[1.0, 0.0], [0.5, 0.5]])
        array([0.75, 0.25])
    """
    return each(weights, _received)


def _received(maps: Maps) -> Floats:
    if maps.source is not None and is_computed(maps.source):
        return maps.source.received()
    items, heads, _, keys = maps.shape
    total, count = np.zeros((items, heads, keys)), np.zeros((items, heads, 1))
    for piece in maps.pieces():
        total[piece.item] += piece.weights.sum(axis=1, dtype=np.float64)
        count[piece.item] += piece.seeing.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (total / count).astype(maps.dtype)


def sink_mass(weights: Any, sinks: int = 1) -> Floats:
    """Return the attention to the first tokens, averaged over the queries (Xiao et al., 2023).

    For one token it is what Gu et al. (2024) hold against a threshold of 0.3 to call a head a
    sink. Where a text begins with padding, its first token is another: take `mass` for that one.

    Args:
        weights: Shape `(..., query, key)`; rows sum to 1. Or an `AttentionMap`, or a list of them,
            which are gone through row by row; there, queries that see no key do not count, and
            what a head gives to a sink that it learned as a logit (GPT-OSS) is no token's.
        sinks: How many of the first tokens; Xiao et al. keep four.
    Returns:
        Shape `(...)`, as `(layer, head)`; 0 to 1. NaN where no query sees a key.
    Raises:
        ShapeError: Fewer than two axes.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: More tokens than there are keys, or less than one.

    Example:
        >>> sink_mass([[[1.0, 0.0], [0.5, 0.5]]])
        array([0.75])
    """
    return each(weights, lambda maps: _sink_mass(maps, sinks))


def _sink_mass(maps: Maps, sinks: int) -> Floats:
    count = check_between(sinks, 1, maps.shape[3], "sinks")
    return average_queries(maps, lambda piece: piece.weights[..., :count].sum(axis=-1))
