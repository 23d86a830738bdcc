"""Maps gone through in one way, whether they are an array or computed: some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from visualizer.analysis.arrays import ROUNDING, Floats, to_weights
from visualizer.analysis.lazy import each_map, is_computed, is_lazy
from visualizer.analysis.rows import Rows, rows_of_array, rows_of_map
from visualizer.errors import ShapeError

if TYPE_CHECKING:
    from visualizer.attention import AttentionMap

__all__ = ["Maps", "Piece", "average_queries", "each", "maps_of_array", "maps_of_map", "of_queries"]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some rows of an item of a batch, with all heads.

    Attributes:
        item: Which item.
        queries: Which queries.
        weights: Shape `(head, query, key)`; 0 where a query sees no key. Not to be changed.
        seeing: Which queries give weight to any key, shape `(head, query)`.
    """

    item: int
    queries: slice
    weights: Floats
    seeing: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """The maps of an array, or of an `AttentionMap`.

    Attributes:
        shape: `(item, head, query, key)`.
        batch: Size of the axis before the heads; there are more items where more axes are before.
        items: The rows of each item.
        source: The `AttentionMap`, or None.
    """

    shape: tuple[int, int, int, int]
    batch: int
    items: tuple[Rows, ...]
    source: AttentionMap | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.items[0].dtype

    @property
    def behind(self) -> int:
        """The place of the first query among the keys: queries that are fewer are the last ones.

        Raises:
            ShapeError: There are more queries than keys.
        """
        queries, keys = self.shape[2:]
        if queries > keys:
            raise ShapeError(
                f"the weights have {queries} queries and {keys} keys, so queries have no place "
                f"among the keys; expected self-attention, (…, token, token), or its last queries"
            )
        return keys - queries

    def pieces(self) -> Iterator[Piece]:
        """Go through all rows.

        Rows that sum to 1 but for rounding are scaled to; others have given to a sink.
        """
        computed = self.source is not None and is_computed(self.source)
        for item, rows in enumerate(self.items):
            for part, weights in rows.blocks():
                sums = weights.sum(axis=-1)
                seeing = sums > 0  # not NaN either
                if not seeing.all():
                    weights = np.where(seeing[..., None], weights, 0)
                if not computed:
                    near = np.abs(sums - 1) <= ROUNDING
                    weights = weights / np.where(near, sums, 1)[..., None]
                yield Piece(item, part, weights, seeing)


def each(weights: Any, function: Callable[[Maps], Floats]) -> Floats:
    """Return what a function makes of an array, of a lazy map, or of each map of a list.

    Args:
        weights: Shape `(..., query, key)`, an `AttentionMap`, or a list of them.
        function: Returns an array whose first axes are item and head.
    Returns:
        The leading axes of the weights, and what the function adds to item and head.
    Raises:
        ShapeError: Fewer than two axes; lists of unequal shapes.
        NotWeightsError: Rows that are not weights.
    """
    if is_lazy(weights):
        return each_map(weights, lambda one: function(maps_of_map(one)))
    array = to_weights(weights)
    result = function(maps_of_array(array))
    return result.reshape(array.shape[:-2] + result.shape[2:])


def maps_of_array(array: Floats) -> Maps:
    """Return the maps of weights, shape `(..., head, query, key)`, or `(query, key)` of one."""
    *before, queries, keys = array.shape
    items, heads = math.prod(before[:-1]), before[-1] if before else 1
    batch = before[-2] if len(before) > 1 else 1
    rows = array.reshape(items, heads, queries, keys)
    return Maps(rows.shape, batch, tuple(rows_of_array(one) for one in rows), None)


def maps_of_map(attention_map: AttentionMap) -> Maps:
    """Return the maps of a lazy one."""
    batch = attention_map.shape[0]
    items = tuple(rows_of_map(attention_map, item) for item in range(batch))
    return Maps(attention_map.shape, batch, items, attention_map)


def of_queries(maps: Maps, function: Callable[[Piece], Floats]) -> Floats:
    """Return a number for each query, shape `(item, head, query)`; NaN for those that see no key.

    Args:
        maps: The maps.
        function: Returns the numbers of some queries, shape `(head, query)`.
    """
    result = np.empty(maps.shape[:3], maps.dtype)
    for piece in maps.pieces():
        numbers = np.where(piece.seeing, function(piece), np.nan)
        result[piece.item, :, piece.queries] = numbers
    return result


def average_queries(maps: Maps, function: Callable[[Piece], Floats]) -> Floats:
    """Return the average over the queries that see a key, shape `(item, head)`; NaN without any.

    Args:
        maps: The maps.
        function: Returns shares of some queries, shape `(head, query)`; NaN does not count.
    """
    total = np.zeros(maps.shape[:2])
    count = np.zeros(maps.shape[:2])
    for piece in maps.pieces():
        numbers = function(piece)
        counted = piece.seeing & ~np.isnan(numbers)
        total[piece.item] += np.where(counted, numbers, 0).sum(axis=-1, dtype=np.float64)
        count[piece.item] += counted.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.minimum(total / count, 1).astype(maps.dtype)  # rounding can leave more
