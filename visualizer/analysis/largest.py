"""The largest weights: how much the first few keys get, and how sure of one a head is."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from visualizer.analysis.arrays import Floats
from visualizer.analysis.choices import check_between, key_places
from visualizer.analysis.lazy import is_computed
from visualizer.analysis.pieces import Maps, Piece, average_queries, each, of_queries

__all__ = ["confidence", "top_mass"]

_FEW: Final = 64
"""So many keys of all queries may be in memory at a time."""


def top_mass(weights: Any, k: int) -> Floats:
    """Return the share of each query's attention that its `k` largest keys get together.

    Args:
        weights: Shape `(..., query, key)`; rows sum to 1. Or an `AttentionMap`, or a list of them,
            which are gone through row by row; there, what goes to a sink is no key's.
        k: How many keys.
    Returns:
        Shape `(..., query)`, 0 to 1. NaN for a query of an `AttentionMap` that sees no key.
    Raises:
        ShapeError: Fewer than two axes.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: More keys than there are, or less than one.

    Example:
        >>> top_mass([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]], 2)
        array([0.75, 1.  ])
    """
    return each(weights, lambda maps: _top(maps, check_between(k, 1, maps.shape[3], "k")))


def _top(maps: Maps, k: int) -> Floats:
    if maps.source is not None and k <= _FEW and is_computed(maps.source):
        largest = maps.source.top_keys(k)[1].sum(axis=-1)
        largest = np.where(largest > 0, largest, np.nan)  # where all is 0, no key is seen
    else:
        largest = of_queries(maps, lambda piece: _sum_of_largest(piece.weights, k))
    return np.minimum(largest, 1)


def _sum_of_largest(weights: Floats, k: int) -> Floats:
    # Negative, since numpy's partition is slow where many of the small ones are equal, as 0 is.
    return -np.partition(-weights, k - 1, axis=-1)[..., :k].sum(axis=-1)


def confidence(weights: Any, *, exclude: Any = None) -> Floats:
    """Return each head's largest weight, averaged over the queries (Voita et al., 2019, §4).

    Args:
        weights: Shape `(..., query, key)`; rows sum to 1. Or an `AttentionMap`, or a list of them,
            which are gone through row by row; there, queries that see no key do not count.
        exclude: Keys whose weight does not count: an index, a list of indexes, a slice, or a
            boolean mask. The paper leaves out the end of the sentence.
    Returns:
        Shape `(...)`, as `(layer, head)`; 0 to 1. NaN where no query sees a key.
    Raises:
        ShapeError: Fewer than two axes.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: A key that does not exist.

    Example:
        >>> confidence([[[1.0, 0.0], [0.5, 0.5]]])
        array([0.75])
    """
    return each(weights, lambda maps: _confidence(maps, exclude))


def _confidence(maps: Maps, exclude: Any) -> Floats:
    counted = np.ones(maps.shape[3], bool)
    if exclude is not None:
        counted[key_places(exclude, maps.shape)] = False

    def largest(piece: Piece) -> Floats:
        rows = piece.weights if exclude is None else np.where(counted, piece.weights, 0)
        return np.asarray(rows.max(axis=-1))

    return average_queries(maps, largest)
