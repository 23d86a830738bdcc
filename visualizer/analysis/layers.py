"""Head-averaged layers, as what follows attention through all of them takes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from visualizer.analysis.arrays import Floats, to_weights
from visualizer.analysis.choices import check_item
from visualizer.analysis.lazy import is_lazy, is_map
from visualizer.analysis.rows import Rows, rows_of_array, rows_of_map
from visualizer.errors import OutOfRangeError, ShapeError

if TYPE_CHECKING:
    from visualizer.attention import AttentionMap

__all__ = ["check_residual", "exact_rows", "layers_of", "maps_of"]


def layers_of(weights: Any, item: int | None, name: str) -> list[Rows]:
    """Return the head-averaged rows of each layer.

    Args:
        weights: Shape `(layer, query, key)`, or an `AttentionMap` for each layer.
        item: For `AttentionMap`s, which item of the batch; needed where there are several.
        name: Of the function, for messages.
    Raises:
        ShapeError: Not self-attention of one size; several items and no choice.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: An item that does not exist.
    """
    if is_lazy(weights):
        return [rows_of_map(each, its).mean() for each, its in maps_of(weights, item, name)]
    if item is not None:
        raise OutOfRangeError(
            f"item is {item!r}, and weights are no AttentionMaps; they are head-averaged, shape "
            f"(layer, query, key), and have no batch: choose the item before"
        )
    array = to_weights(weights)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ShapeError(
            f"{name} takes head-averaged self-attention, shape (layer, query, key) with as many "
            f"queries as keys; got {array.shape}{_hint(array)}"
        )
    return [rows_of_array(layer) for layer in array]


def maps_of(weights: Any, item: int | None, name: str) -> list[tuple[AttentionMap, int]]:
    """Return the map of each layer, and which of its items is meant.

    Args:
        weights: An `AttentionMap`, or a list with one for each layer.
        item: Which item of the batch; needed where there are several.
        name: Of the function, for messages.
    Raises:
        ShapeError: Not self-attention of one size; several items and no choice.
        OutOfRangeError: An item that does not exist.
    """
    maps = [weights] if is_map(weights) else list(weights)
    if not all(is_map(each) for each in maps):
        raise ShapeError(
            f"{name} takes one AttentionMap for each layer, got lists of them. For the last call "
            f"of each layer: [calls[-1] for calls in captured.attention.layers]"
        )
    sizes = {each.shape[2:] for each in maps}
    if len(sizes) > 1 or any(queries != keys for queries, keys in sizes):
        raise ShapeError(
            f"{name} takes self-attention of one size in all layers, with as many queries as "
            f"keys; got AttentionMaps with (query, key) of {sorted(sizes)}"
        )
    return [
        (each, check_item(item, each.shape, f"weights[{layer}]")) for layer, each in enumerate(maps)
    ]


def exact_rows(
    layer: Rows, needed: NDArray[np.bool_] | None = None
) -> Iterator[tuple[slice, Floats]]:
    """Go through a layer's rows, scaled to sum to 1; those that see nothing keep what they have.

    Rows of low-precision weights sum to nearly 1; the error would grow with each layer.

    Args:
        layer: The layer.
        needed: Which queries, shape `(query,)`; blocks without any are not computed. None is all.
    """
    for part, rows in layer.blocks(needed):
        sums = rows.sum(axis=-1, keepdims=True)
        blind = np.flatnonzero(~(sums > 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            exact = rows / sums
        exact[blind] = 0
        exact[blind, part.start + blind] = 1
        yield part, exact


def check_residual(residual: float) -> float:
    """Return the share of the identity path, having made sure that it is one.

    Raises:
        OutOfRangeError: It is not.
    """
    if not 0 <= residual <= 1:
        raise OutOfRangeError(f"residual is {residual}; expected a share, 0 to 1")
    return float(residual)


def _hint(layers: Floats) -> str:
    if layers.ndim == 2:
        return ". For a single layer: weights[None]"
    if layers.ndim == 4:
        return ". Average over the heads first: weights.mean(axis=1)"
    if layers.ndim == 5:
        return (
            ". Choose one item of the batch and average over the heads: weights[:, 0].mean(axis=1)"
        )
    return ""
