"""Attention by relative position."""

from __future__ import annotations

from typing import Any

import numpy as np

from visualizer.analysis.arrays import Floats
from visualizer.analysis.choices import check_between, check_index
from visualizer.analysis.pieces import Maps, Piece, average_queries, each

__all__ = ["positional_profile", "previous_token_score"]


def previous_token_score(weights: Any, *, offset: int = 1, maxima: bool = False) -> Floats:
    """Return the attention to the token before, averaged over the queries that have one.

    So Clark et al. (2019, §3.1) find heads that look at a neighbour. Voita et al. (2019, §5.1)
    count instead how often it has the largest weight, and call a head positional from 90 % on.

    Args:
        weights: Self-attention, shape `(..., query, key)`; rows sum to 1; with fewer queries than
            keys they are the last ones. Or an `AttentionMap`, or a list of them, which are gone
            through row by row; there, queries that see no key do not count.
        offset: How many tokens before; 0 is the token itself, -1 the one after it.
        maxima: Count how often it has the largest weight, instead of averaging the weight.
    Returns:
        Shape `(...)`, as `(layer, head)`; 0 to 1. NaN where no query sees a key.
    Raises:
        ShapeError: Fewer than two axes, or more queries than keys.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: No query has a token at that offset.

    Example:
        >>> previous_token_score([[[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.0, 0.25, 0.75]]])
        array([0.5])
    """
    return each(weights, lambda maps: _at_offset(maps, offset, maxima))


def _at_offset(maps: Maps, offset: int, maxima: bool) -> Floats:
    keys, behind = maps.shape[3], maps.behind
    offset = check_between(offset, behind - keys + 1, keys - 1, "offset")

    def there(piece: Piece) -> Floats:
        places = np.arange(piece.queries.start, piece.queries.stop) + behind - offset
        has = np.flatnonzero((places >= 0) & (places < keys))
        found = piece.weights[:, has, places[has]]
        result = np.full(piece.seeing.shape, np.nan)
        result[:, has] = found >= piece.weights[:, has].max(axis=-1) if maxima else found
        return result

    return average_queries(maps, there)


def positional_profile(weights: Any, *, reach: int | None = None) -> Floats:
    """Return the attention at each relative position, key − query, averaged over the queries.

    At an offset, all queries count that have a key there and see any. It is the curve that
    positional heads (Voita et al., 2019, §5.1) have a peak in.

    Args:
        weights: Self-attention, shape `(..., query, key)`; rows sum to 1; with fewer queries than
            keys they are the last ones. Or an `AttentionMap`, or a list of them, which are gone
            through row by row.
        reach: How many tokens before and after the own one; None is all there are.
    Returns:
        Shape `(..., 2 · reach + 1)`: the offsets from `-reach` to `reach`, so that the own
        position is in the middle; `reach` is the number of keys less 1 where none was given. NaN
        where no query counts.
    Raises:
        ShapeError: Fewer than two axes, or more queries than keys.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: A reach below 0, or beyond the keys.

    Example:
        >>> positional_profile([[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.0, 0.25, 0.75]], reach=1)
        array([0.5       , 0.66666667, 0.        ])
    """
    return each(weights, lambda maps: _profile(maps, reach))


def _profile(maps: Maps, reach: int | None) -> Floats:
    items, heads, _, keys = maps.shape
    most, behind = keys - 1, maps.behind
    reach = most if reach is None else check_index(reach, keys, "reach")
    total = np.zeros((items, heads, 2 * most + 1))
    steps = np.zeros((items, heads, 2 * most + 2))  # where the offsets of a query begin and end
    for piece in maps.pieces():
        for row, query in enumerate(range(piece.queries.start, piece.queries.stop)):
            first = most - behind - query
            total[piece.item, :, first : first + keys] += piece.weights[:, row]
            steps[piece.item, :, first] += piece.seeing[:, row]
            steps[piece.item, :, first + keys] -= piece.seeing[:, row]
    count = steps.cumsum(axis=-1)[..., :-1]
    with np.errstate(invalid="ignore"):
        profile = np.where(count > 0, total / count, np.nan)
    return profile[..., most - reach : most + reach + 1].astype(maps.dtype)
