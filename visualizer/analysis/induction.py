"""Induction: looking at what followed the same token before."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visualizer.analysis.arrays import Floats, to_integers
from visualizer.analysis.choices import check_between
from visualizer.analysis.pieces import Maps, Piece, average_queries, each
from visualizer.errors import OutOfRangeError, ShapeError

__all__ = ["induction_score"]


def induction_score(
    weights: Any, *, period: int | None = None, prefix_tokens: int = 0, tokens: Any = None
) -> Floats:
    """Return how much a token looks at what followed it before (Olsson et al., 2022).

    Of a query, the weights of all keys that come right after an earlier occurrence of its token
    are added; these are averaged over the queries whose token has occurred. On a block of random
    tokens and its repetition, that is the paper's prefix matching score. Give `period` or `tokens`.

    Args:
        weights: Self-attention, shape `(..., query, key)`; rows sum to 1; with fewer queries than
            keys they are the last ones. Or an `AttentionMap`, or a list of them, which are gone
            through row by row; there, queries that see no key do not count.
        period: Length of the block of tokens, all different, that is repeated.
        prefix_tokens: With `period`: tokens before the first block, as the start of the text.
        tokens: Ids, shape `(key,)` or `(batch, key)`, of any text; negative ones, as for padding,
            match nothing.
    Returns:
        Shape `(...)`, as `(layer, head)`; 0 to 1. NaN where no query counts.
    Raises:
        ShapeError: Fewer than two axes, more queries than keys, or tokens that don't fit.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: Neither or both of `period` and `tokens`; nothing is repeated.

    Example:
        >>> rows = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.75, 0, 0], [0, 0, 0.25, 0.75]]
        >>> induction_score(rows, period=2)
        array(0.5)
    """
    if (period is None) == (tokens is None):
        raise OutOfRangeError(
            f"period is {period} and tokens is {tokens if tokens is None else 'given'}; expected "
            f"one of them"
        )
    if tokens is not None and prefix_tokens:
        raise OutOfRangeError("prefix_tokens goes with period; among tokens, give them ids below 0")
    return each(weights, lambda maps: _score(maps, _ids(maps, period, prefix_tokens, tokens)))


def _ids(maps: Maps, period: int | None, prefix: int, tokens: Any) -> NDArray[np.int64]:
    """Return the token at each key, shape `(1, key)` or `(batch, key)`."""
    keys = maps.shape[3]
    if period is not None:
        prefix = check_between(prefix, 0, keys - 1, "prefix_tokens")
        if not 1 <= period < keys - prefix:
            raise OutOfRangeError(
                f"period is {period}, and {keys - prefix} tokens don't repeat it; expected 1 to "
                f"{keys - prefix - 1}, the length of the block that is repeated"
            )
        ids = np.arange(-prefix, keys - prefix)
        return np.where(ids < 0, -1, ids % period)[None]
    given = np.atleast_2d(to_integers(tokens, "tokens"))
    if given.ndim > 2 or given.shape[0] not in (1, maps.batch) or given.shape[1] != keys:
        raise ShapeError(
            f"tokens has shape {given.shape}; expected ({keys},) or ({maps.batch}, {keys}), for "
            f"weights with {keys} keys and a batch of {maps.batch}"
        )
    return given


def _score(maps: Maps, ids: NDArray[np.int64]) -> Floats:
    behind, keys = maps.behind, maps.shape[3]

    def followed(piece: Piece) -> Floats:
        text = ids[piece.item % len(ids)]
        places = np.arange(piece.queries.start, piece.queries.stop) + behind
        own = text[places][:, None]
        before = np.arange(keys - 1) < places[:, None]
        after = np.zeros((len(places), keys), bool)
        after[:, 1:] = (text[:-1] == own) & before & (own >= 0)
        found = np.einsum("hqk,qk->hq", piece.weights, after.astype(maps.dtype))
        return np.where(after.any(axis=-1), found, np.nan)

    return average_queries(maps, followed)
