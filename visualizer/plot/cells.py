"""From maps of any size to as many cells as a figure shows; the strongest weight of each stays."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from visualizer.analysis.arrays import Floats
from visualizer.analysis.rows import Rows

__all__ = ["cell_sizes", "matrix_cells", "strongest", "tiles"]

_MOST_CELLS: Final = 400  # in a row or a column; about as many pixels has a figure of one head


def matrix_cells(maps: Rows) -> Floats:
    """Return maps with at most 400 cells along a side, shape `(…, row, column)`.

    Of more queries or keys, the strongest weight of each block of neighbours is kept: an average
    would hide the one key that all attend to.
    """
    sizes = cell_sizes(maps.shape)
    queries, keys = (
        np.arange(0, count, size) for count, size in zip(maps.shape[-2:], sizes, strict=True)
    )
    return strongest(maps, queries, keys)


def cell_sizes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many queries and how many keys `matrix_cells` makes one cell of."""
    queries, keys = (-(-count // _MOST_CELLS) for count in shape[-2:])
    return queries, keys


def tiles(maps: Rows, side: int) -> Floats:
    """Bring maps to `side` × `side`: the strongest of each block, or cells repeated."""
    starts = [np.arange(min(side, count)) * count // min(side, count) for count in maps.shape[-2:]]
    rows, columns = (np.arange(side) * len(each) // side for each in starts)
    return strongest(maps, *starts)[..., rows[:, None], columns]


def strongest(maps: Rows, query_starts: NDArray[np.intp], key_starts: NDArray[np.intp]) -> Floats:
    """Return the value farthest from 0 of each block; blocks begin where it is said.

    The maps are gone through some rows at a time, and never are in memory as a whole.
    """
    shape = (*maps.shape[:-2], len(query_starts), len(key_starts))
    cells = np.zeros(shape, maps.dtype)
    for part, values in maps.blocks():
        first = np.searchsorted(query_starts, part.start, side="right") - 1
        last = np.searchsorted(query_starts, part.stop, side="left")
        starts = np.maximum(query_starts[first:last] - part.start, 0)
        before = cells[..., first:last, :]  # of a block that began in the rows before
        most = np.maximum(before, _extreme(np.maximum, values, starts, key_starts))
        least = before
        if values.min() < 0:  # a difference of maps
            least = np.minimum(before, _extreme(np.minimum, values, starts, key_starts))
        cells[..., first:last, :] = np.where(most >= -least, most, least)
    return cells


def _extreme(
    ufunc: np.ufunc, values: Floats, query_starts: NDArray[np.intp], key_starts: NDArray[np.intp]
) -> Floats:
    return np.asarray(ufunc.reduceat(ufunc.reduceat(values, key_starts, -1), query_starts, -2))
