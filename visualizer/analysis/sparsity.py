"""How much of what a query could look at it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from visualizer.analysis.arrays import Floats
from visualizer.analysis.lazy import is_computed
from visualizer.analysis.pieces import Maps, Piece, each, of_queries
from visualizer.analysis.visible import visible_keys
from visualizer.errors import OutOfRangeError

if TYPE_CHECKING:
    from visualizer.attention import AttentionCall

__all__ = ["sparsity"]

_REFERENCES = ("maximum", "even", "row")


def sparsity(
    weights: Any,
    threshold: float = 0.01,
    *,
    relative_to: Literal["maximum", "even", "row"] = "maximum",
    causal: bool = False,
) -> Floats:
    """Return the share of the visible keys that get next to nothing (Zhang et al., 2023, §3.1).

    The paper, H2O, takes one percent of the largest weight in each row as the threshold.

    Args:
        weights: Shape `(..., query, key)`; rows sum to 1. Or an `AttentionMap`, or a list of them,
            which are gone through row by row. Of these, keys that the mask hides do not count; a
            number of -10000 or less that is added to a score hides.
        threshold: Weights below it are next to nothing.
        relative_to: What it is a share of: `"maximum"`, the query's largest weight; `"even"`, what
            each visible key would get if all got the same; `"row"`, all of the query's attention.
        causal: Query `i` sees the keys up to its own position only; with fewer queries than keys
            they are the last ones. Captured maps whose mask is known need no telling.
    Returns:
        Shape `(..., query)`, 0 to 1. NaN for a query of an `AttentionMap` that sees no key.
    Raises:
        ShapeError: Fewer than two axes; causal, and more queries than keys.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: A threshold below 0, or relative to something else.

    Example:
        >>> sparsity([[0.996, 0.004, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
        array([0.75, 0.  ])
    """
    if not threshold >= 0:
        raise OutOfRangeError(f"threshold is {threshold}; expected 0 or more, as 0.01")
    if relative_to not in _REFERENCES:
        raise OutOfRangeError(f"relative_to is {relative_to!r}; expected one of {_REFERENCES}")

    def of_maps(maps: Maps) -> Floats:
        visible = _visible(maps, causal)
        return of_queries(maps, lambda one: _share(one, visible(one), threshold, relative_to))

    return each(weights, of_maps)


def _share(piece: Piece, visible: NDArray[np.bool_], threshold: float, relative_to: str) -> Floats:
    """Return the share of visible keys below the threshold, shape `(head, query)`."""
    count = np.count_nonzero(visible, axis=-1)
    least: Any = threshold
    with np.errstate(invalid="ignore", divide="ignore"):
        if relative_to == "maximum":
            least = threshold * piece.weights.max(axis=-1)[..., None]
        elif relative_to == "even":
            least = threshold / count[..., None]
        below = np.count_nonzero((piece.weights < least) & visible, axis=-1)
        return np.asarray(below / count)


def _visible(maps: Maps, causal: bool) -> Callable[[Piece], NDArray[np.bool_]]:
    """Return a function to what the queries of a piece see, broadcastable to its weights."""
    call = _call_of(maps)
    known = maps.source is not None and maps.source.record.is_causal is True
    behind = maps.behind if causal or known else None

    def visible(piece: Piece) -> NDArray[np.bool_]:
        if call is None:
            seen = np.ones((1, *piece.weights.shape[1:]), bool)
        else:
            seen = visible_keys(call, piece.item, piece.queries)
        return seen if behind is None else np.tril(seen, k=behind + piece.queries.start)

    return visible


def _call_of(maps: Maps) -> AttentionCall | None:
    """Return the call that a map is computed from, if it is."""
    if maps.source is None or not is_computed(maps.source):
        return None
    call: Any = maps.source.record.read()
    return call
