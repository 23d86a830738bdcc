"""Mean attention distance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from visualizer.analysis.arrays import Floats, to_weights
from visualizer.analysis.grids import Grid, check_grid
from visualizer.analysis.lazy import each_map, is_lazy
from visualizer.errors import OutOfRangeError, ShapeError

if TYPE_CHECKING:
    from visualizer.attention import AttentionMap

__all__ = ["attention_distance"]


def attention_distance(
    weights: Any,
    grid: Grid | None = None,
    *,
    patch_size: float | tuple[float, float] = 1,
    prefix_tokens: int = 0,
) -> Floats:
    """Return how far each head looks, on average (Dosovitskiy et al., 2021, fig. 7 and app. D.7).

    For each query, the distances to all keys are averaged with the weights; then the queries are
    averaged. Prefix tokens (CLS, registers) have no place on the grid: they are dropped as queries
    and as keys, and what is left of each row is scaled to sum to 1.

    Args:
        weights: Self-attention, shape `(..., token, token)`; rows sum to 1. Or an `AttentionMap`,
            or a list of them, which are gone through row by row.
        grid: Rows and columns of patches, or one number for both. None for text: the distance
            is then that of the positions, in tokens.
        patch_size: Height and width of a patch, or one number for both: in pixels, the distance is
            in pixels.
        prefix_tokens: Tokens before the patches.
    Returns:
        Shape `(...)`, as `(layer, head)`; in units of `patch_size`. NaN where every query attends
        to prefix tokens alone, or to nothing.
    Raises:
        ShapeError: Not self-attention, or another number of tokens than the grid has.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: As many prefix tokens as there are tokens, or less than none.

    Example:
        >>> import numpy as np
        >>> attention_distance(np.full((1, 4, 4), 0.25), grid=2).round(3)
        array([0.854])
    """
    if is_lazy(weights):
        return each_map(weights, lambda one: _of_map(one, grid, patch_size, prefix_tokens))
    array = to_weights(weights)
    places = _centres(_grid_of(array.shape, grid, prefix_tokens), patch_size)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1).astype(array.dtype)
    patches = array[..., prefix_tokens:, prefix_tokens:]
    left = patches.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.einsum("...qk,qk->...q", patches, apart) / left
    counted = left > 0
    total = np.where(counted, each, 0).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / counted.sum(axis=-1), dtype=array.dtype)


def _of_map(
    attention_map: AttentionMap,
    grid: Grid | None,
    patch_size: float | tuple[float, float],
    prefix_tokens: int,
) -> Floats:
    sides = _grid_of(attention_map.shape, grid, prefix_tokens)
    return attention_map.distance(sides, patch_size=patch_size, prefix_tokens=prefix_tokens)


def _grid_of(shape: tuple[int, ...], grid: Grid | None, prefix_tokens: int) -> tuple[int, int]:
    """Return the grid, having made sure that the tokens fit it; a text is a single row."""
    queries, keys = shape[-2:]
    if queries != keys:
        raise ShapeError(f"attention distance needs as many queries as keys, got shape {shape}")
    if not 0 <= prefix_tokens < keys:
        raise OutOfRangeError(
            f"prefix_tokens is {prefix_tokens}, and there are {keys} tokens in all"
        )
    return (1, keys - prefix_tokens) if grid is None else check_grid(grid, keys, prefix_tokens)


def _centres(grid: tuple[int, int], patch_size: float | tuple[float, float]) -> Floats:
    rows, columns = np.indices(grid, dtype=np.float64)
    return np.stack([rows.ravel(), columns.ravel()], axis=-1) * np.asarray(patch_size)
