"""Entropy of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from visualizer.analysis.arrays import ROUNDING, Floats, to_weights
from visualizer.analysis.lazy import each_map, is_lazy
from visualizer.analysis.pieces import Piece, each, of_queries
from visualizer.errors import NotWeightsError

if TYPE_CHECKING:
    from visualizer.attention import AttentionMap

__all__ = ["effective_support", "entropy"]


def entropy(weights: Any, *, normalized: bool = False, causal: bool = False) -> Floats:
    """Return how widely each query spreads its attention, `-Σ a·log(a)` (Clark et al., 2019, §3.3).

    Args:
        weights: Shape `(..., query, key)`; rows sum to 1. Or an `AttentionMap`, or a list of them,
            which are gone through row by row; there, what goes to a sink does not count.
        normalized: Divide by the entropy of even attention, `log(number of keys)`: 0 is one key,
            1 is all alike.
        causal: Query `i` sees the keys up to its own position only, so even attention has the
            entropy `log(i + 1)`; with fewer queries than keys they are the last ones. Matters for
            `normalized`.
    Returns:
        Shape `(..., query)`; nats, or 0 to 1 if normalized. A query that sees a single key has
        the entropy 0 and, normalized, NaN; one of an `AttentionMap` that sees none has NaN.
    Raises:
        ShapeError: Fewer than two axes.
        NotWeightsError: Rows that are not weights, or not causal where they should be.

    Example:
        >>> entropy([[0.5, 0.5], [1.0, 0.0]], normalized=True)
        array([1., 0.])
    """
    if is_lazy(weights):
        return each_map(weights, lambda one: _of_map(one, normalized, causal))
    array = to_weights(weights)
    array = array / array.sum(axis=-1, keepdims=True)
    logs = np.zeros_like(array)
    np.log(array, out=logs, where=array > 0)
    spread = -np.multiply(array, logs, out=logs).sum(axis=-1, dtype=np.float64)
    spread = np.maximum(spread, 0)  # rounding can leave -0.0 or a little less
    if not normalized:
        return spread.astype(array.dtype)
    if causal:
        queries, keys = array.shape[-2:]
        _check_causal(_ahead(array, keys - queries), array.shape)
    return _share(spread, array.shape, causal).astype(array.dtype)


def effective_support(weights: Any) -> Floats:
    """Return how many keys each query looks at in effect, the exponential of its entropy.

    It is the number of keys with even weights that have the same entropy (perplexity, true
    diversity of order 1).

    Args:
        weights: Shape `(..., query, key)`; rows sum to 1. Or an `AttentionMap`, or a list of them,
            which are gone through row by row; there, what goes to a sink does not count.
    Returns:
        Shape `(..., query)`; 1 to the number of keys. A query of an `AttentionMap` that sees no
        key has NaN.
    Raises:
        ShapeError: Fewer than two axes.
        NotWeightsError: Rows that are not weights.

    Example:
        >>> effective_support([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
        array([2., 1.])
    """
    return np.exp(each(weights, lambda maps: of_queries(maps, _spread)))


def _spread(piece: Piece) -> Floats:
    """Return the entropy of each row, scaled to sum to 1; from the weights.

    What a kernel returns for it is a difference, whose rounding the exponential would show.
    """
    weights = piece.weights
    logs = np.maximum(weights, np.finfo(weights.dtype).tiny)
    np.log(logs, out=logs)
    logs *= weights
    sums = np.where(piece.seeing, weights.sum(axis=-1), 1)
    return np.maximum(np.log(sums) - logs.sum(axis=-1) / sums, 0)


def _of_map(attention_map: AttentionMap, normalized: bool, causal: bool) -> Floats:
    if normalized and causal and not attention_map.is_causal:
        queries, keys = attention_map.shape[2:]
        most = max(
            _ahead(block.weights, keys - queries + block.queries.start)
            for block in attention_map.blocks()
        )
        _check_causal(most, attention_map.shape)
    spread = attention_map.entropy()
    if not normalized:
        return spread
    return _share(spread, attention_map.shape, causal).astype(spread.dtype)


def _share(spread: Floats, shape: tuple[int, ...], causal: bool) -> Floats:
    """Divide entropy by that of even attention."""
    queries, keys = shape[-2:]
    visible = np.arange(keys - queries + 1, keys + 1) if causal else np.full(queries, keys)
    with np.errstate(divide="ignore", invalid="ignore"):
        even = np.log(np.maximum(visible, 1))
        share = np.where(even > 0, spread / even, np.nan)
    return np.minimum(share, 1)


def _ahead(weights: Floats, before: int) -> float:
    """Return the most that a query gives to keys behind its place.

    Args:
        weights: Shape `(..., query, key)`.
        before: How many keys are before the place of the first query.
    """
    ahead = np.triu(weights, k=before + 1).sum(axis=-1, dtype=np.float64)
    return float(np.nan_to_num(ahead).max())


def _check_causal(ahead: float, shape: tuple[int, ...]) -> None:
    if ahead > ROUNDING:
        raise NotWeightsError(
            f"weights of shape {shape} are not causal: a query gives {ahead:.2g} of its attention "
            f"to keys behind its own position. Leave causal=True out"
        )
