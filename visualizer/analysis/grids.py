"""Tokens that are the patches of a picture: how many, in which rows and columns."""

from __future__ import annotations

import math
from typing import Any

from visualizer._grids import rows_and_columns
from visualizer.errors import ShapeError

__all__ = ["Grid", "check_grid", "grid_in_proportion", "rows_and_columns"]

Grid = int | tuple[int, int]


def check_grid(grid: Any, tokens: int, prefix_tokens: int = 0) -> tuple[int, int]:
    """Return `(rows, columns)`, having made sure that the tokens are as many.

    Raises:
        ShapeError: They are not; the message guesses why.
    """
    rows, columns = rows_and_columns(grid)
    if rows * columns + prefix_tokens == tokens:
        return rows, columns
    prefix = f" and {prefix_tokens} before them" if prefix_tokens else ""
    raise ShapeError(
        f"{tokens} tokens don't fit a grid of {rows}×{columns} = {rows * columns} patches{prefix}. "
        f"{_guess(tokens, rows * columns, prefix_tokens)}"
    )


def grid_in_proportion(tokens: int, height: float, width: float) -> tuple[int, int] | None:
    """Return the grid of so many patches that has a picture's proportions; None if none has.

    That is the one whose sides are the picture's, both divided by the same number and rounded up,
    as convolutions do it that halve a picture again and again. There is one at most.
    """
    for rows in range(1, tokens + 1):
        columns, rest = divmod(tokens, rows)
        longest = min(rows * width, columns * height)
        if not rest and max((rows - 1) * width, (columns - 1) * height) < longest:
            return rows, columns
    return None


def _guess(tokens: int, patches: int, prefix_tokens: int) -> str:
    over = tokens - patches
    if over in (0, 1, 2, 5):  # CLS; a distillation token; 4 registers
        return _guess_prefix(tokens, patches, over)
    for prefix in (prefix_tokens, 1, 0, 2, 5):
        side = math.isqrt(max(tokens - prefix, 0))
        if side > 1 and side * side == tokens - prefix:
            return f"{tokens} = {side}×{side} + {prefix}: is the grid {side}×{side}?"
    if 0 <= over <= 16:
        return _guess_prefix(tokens, patches, over)
    return "Pass the grid as (rows, columns)"


def _guess_prefix(tokens: int, patches: int, over: int) -> str:
    before = {0: "no token", 1: "the CLS token"}.get(over, f"CLS and {over - 1} more")
    return (
        f"{tokens} = {patches} + {over}: with {before} before the patches, "
        f"prefix_tokens={over} is right"
    )
