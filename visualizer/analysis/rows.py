"""Maps of one size, some rows at a time: of an array, or computed when they are taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from visualizer.analysis.arrays import Floats

if TYPE_CHECKING:
    from visualizer.attention import AttentionMap

__all__ = ["Rows", "rows_of_array", "rows_of_map", "stacked"]

_BLOCK_BYTES: Final = 16 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Maps whose rows are taken where they are needed.

    Attributes:
        shape: `(query, key)` or `(head, query, key)`.
        dtype: float32 or float64.
        step: How many queries are taken at a time, so that their rows need little memory.
        take: Returns the rows of some queries, shape `(…, query, key)`; not to be changed.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    step: int
    take: Callable[[slice], Floats]

    def blocks(self, needed: NDArray[np.bool_] | None = None) -> Iterator[tuple[slice, Floats]]:
        """Go through all queries, some at a time.

        Args:
            needed: Which queries, shape `(query,)`; blocks without any are left out.
        """
        queries = self.shape[-2]
        for start in range(0, queries, self.step):
            part = slice(start, min(start + self.step, queries))
            if needed is None or needed[part].any():
                yield part, self.take(part)

    def row(self, query: int) -> Floats:
        """Return where a query looks, shape `(…, key)`."""
        return np.asarray(self.take(slice(query, query + 1))[..., 0, :])

    def mean(self) -> Rows:
        """Return the average of the heads."""
        take = self.take
        return replace(self, shape=self.shape[1:], take=lambda part: take(part).mean(axis=0))


def rows_of_array(array: Floats) -> Rows:
    """Return the rows of an array, shape `(query, key)` or `(head, query, key)`."""
    step = _step(array.shape, array.dtype)
    return Rows(array.shape, array.dtype, step, lambda part: array[..., part, :])


def rows_of_map(attention_map: AttentionMap, item: int, heads: slice = slice(None)) -> Rows:
    """Return the rows of some heads of one item of a map, shape `(head, query, key)`."""
    _, count, queries, keys = attention_map.shape
    shape = (len(range(count)[heads]), queries, keys)
    dtype = attention_map.dtype
    return Rows(
        shape, dtype, _step(shape, dtype), lambda part: np.asarray(attention_map[item, heads, part])
    )


def stacked(layers: Sequence[Rows]) -> Rows:
    """Return the heads of several maps of one size as those of one."""
    heads = sum(layer.shape[0] for layer in layers)
    shape = (heads, *layers[0].shape[1:])
    dtype = np.result_type(*(layer.dtype for layer in layers))
    return Rows(
        shape,
        dtype,
        _step(shape, dtype),
        lambda part: np.concatenate([layer.take(part) for layer in layers]),
    )


def _step(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return max(1, _BLOCK_BYTES // (math.prod(shape[:-2]) * shape[-1] * dtype.itemsize))
