"""Where tokens lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visualizer._grids import rows_and_columns
from visualizer.attention.picks import Shape
from visualizer.errors import OutOfRangeError, ShapeError

__all__ = ["token_places"]


def token_places(
    shape: Shape, grid: Any, patch_size: Any, prefix_tokens: int
) -> NDArray[np.float64]:
    """Return the places of the tokens behind the prefix, shape `(token, 2)`: down and right.

    Args:
        shape: Of the map.
        grid: Rows and columns of patches, or one number for both; None for text.
        patch_size: Height and width of a patch, or one number for both.
        prefix_tokens: Tokens before the patches.
    Raises:
        ShapeError: Not self-attention, or another number of tokens than the grid has.
        OutOfRangeError: As many prefix tokens as there are tokens, or less than none.
    """
    tokens = shape[3]
    if shape[2] != tokens:
        raise ShapeError(f"distance needs as many queries as keys; the map's shape is {shape}")
    if not 0 <= prefix_tokens < tokens:
        raise OutOfRangeError(
            f"prefix_tokens is {prefix_tokens}, and there are {tokens} tokens in all"
        )
    rows, columns = (1, tokens - prefix_tokens) if grid is None else rows_and_columns(grid)
    if rows * columns + prefix_tokens != tokens:
        raise ShapeError(
            f"{tokens} tokens don't fit a grid of {rows}×{columns} = {rows * columns} patches and "
            f"{prefix_tokens} tokens before them. Give the grid as (rows, columns), and the number "
            f"of CLS and register tokens as prefix_tokens"
        )
    down, right = np.indices((rows, columns), dtype=np.float64)
    return np.stack([down.ravel(), right.ravel()], axis=-1) * np.asarray(patch_size, np.float64)
