"""Entropy of attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from visualizer.analysis.arrays import Floats, to_weights
from visualizer.errors import NotWeightsError

__all__ = ["entropy"]


def entropy(weights: Any, *, normalized: bool = False, causal: bool = False) -> Floats:
    """Return how widely each query spreads its attention, `-Σ a·log(a)` (Clark et al., 2019, §3.3).

    Args:
        weights: Shape `(..., query, key)`; rows sum to 1.
        normalized: Divide by the entropy of even attention, `log(number of keys)`: 0 is one key,
            1 is all alike.
        causal: Query `i` sees the keys up to its own position only, so even attention has the
            entropy `log(i + 1)`; with fewer queries than keys they are the last ones. Matters for
            `normalized`.
    Returns:
        Shape `(..., query)`; nats, or 0 to 1 if normalized. A query that sees a single key has
        the entropy 0 and, normalized, NaN.
    Raises:
        ShapeError: Fewer than two axes.
        NotWeightsError: Rows that are not weights, or not causal where they should be.

    Example:
        >>> entropy([[0.5, 0.5], [1.0, 0.0]], normalized=True)
        array([1., 0.])
    """
    array = to_weights(weights)
    array = array / array.sum(axis=-1, keepdims=True)
    logs = np.zeros_like(array)
    np.log(array, out=logs, where=array > 0)
    spread = -np.multiply(array, logs, out=logs).sum(axis=-1, dtype=np.float64)
    spread = np.maximum(spread, 0)  # rounding can leave -0.0 or a little less
    if not normalized:
        return spread.astype(array.dtype)
    queries, keys = array.shape[-2:]
    if causal:
        _check_causal(array)
    visible = np.arange(keys - queries + 1, keys + 1) if causal else np.full(queries, keys)
    with np.errstate(divide="ignore", invalid="ignore"):
        even = np.log(np.maximum(visible, 1))
        share = np.where(even > 0, spread / even, np.nan)
    return np.minimum(share, 1).astype(array.dtype)


def _check_causal(array: Floats) -> None:
    queries, keys = array.shape[-2:]
    ahead = np.triu(array, k=keys - queries + 1).sum(axis=-1, dtype=np.float64)
    if ahead.max() > 0.02:
        raise NotWeightsError(
            f"weights of shape {array.shape} are not causal: a query gives {ahead.max():.2g} of "
            f"its attention to keys behind its own position. Leave causal=True out"
        )
