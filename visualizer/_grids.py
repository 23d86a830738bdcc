"""Grids of patches, as people give them."""

from __future__ import annotations

import operator
from typing import Any

from visualizer.errors import ShapeError

__all__ = ["rows_and_columns"]


def rows_and_columns(grid: Any) -> tuple[int, int]:
    """Return a grid as `(rows, columns)`; one number stands for both.

    Raises:
        ShapeError: It is neither a positive number nor a pair of them.
    """
    pair = tuple(grid) if isinstance(grid, list | tuple) else (grid, grid)
    try:
        rows, columns = (operator.index(number) for number in pair)
    except (TypeError, ValueError):
        rows = columns = 0
    if rows < 1 or columns < 1:
        raise ShapeError(f"a grid is a number of patches or (rows, columns), got {grid!r}")
    return rows, columns
