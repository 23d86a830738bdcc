"""Attention rollout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from visualizer.analysis.arrays import Floats, to_weights
from visualizer.analysis.choices import check_item
from visualizer.analysis.lazy import is_lazy, is_map
from visualizer.analysis.rows import Rows, rows_of_array, rows_of_map
from visualizer.errors import OutOfRangeError, ShapeError

__all__ = ["rollout", "rollout_row"]


def rollout(weights: Any, *, residual: float = 0.5, item: int | None = None) -> Floats:
    """Propagate attention through the layers (Abnar & Zuidema, 2020, eq. 1).

    Each layer passes on what its attention collects and, beside it, each token's own value by the
    residual connection: `(1 - residual) · weights + residual · identity`. The result is the
    product of these over the layers, the last one leftmost.

    Args:
        weights: Head-averaged, shape `(layer, query, key)`; rows sum to 1. An array, a tensor, or
            a list with one for each layer. Or an `AttentionMap` for each layer, as
            `captured.attention`: their heads are averaged here, some rows at a time, and rows are
            scaled to sum to 1. A query that sees no key keeps its own value.
        residual: Share of the identity path, 0 to 1; the paper takes 0.5.
        item: For `AttentionMap`s, which item of the batch; needed where there are several.
    Returns:
        Shape `(query, key)`: how much of each input token arrives at each output token; rows sum
        to 1.
    Raises:
        ShapeError: Not three axes, or the last two differ; several items and no choice.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: `residual` outside of 0 to 1, or an item that does not exist.

    Example:
        >>> import numpy as np
        >>> rollout(np.full((2, 2, 2), 0.5))
        array([[0.625, 0.375],
               [0.375, 0.625]])
    """
    residual = _check_residual(residual)
    layers = _layers(weights, item)
    dtype = np.result_type(*(layer.dtype for layer in layers))
    result: Floats = np.eye(layers[0].shape[-1], dtype=dtype)
    for layer in layers:
        after = np.empty_like(result)
        for part, rows in _exact_rows(layer):
            after[part] = (1 - residual) * (rows @ result) + residual * result[part]
        result = after
    return result


def rollout_row(layers: Sequence[Rows], tokens: Floats, *, residual: float = 0.5) -> Floats:
    """Return what arrives at some tokens together, without the rest of the rollout.

    Args:
        layers: Head-averaged self-attention, all of one size.
        tokens: How much each token counts, shape `(query,)`: 1 for one of them.
        residual: Share of the identity path, 0 to 1.
    Returns:
        Shape `(key,)`.
    Raises:
        OutOfRangeError: `residual` outside of 0 to 1.
    """
    residual = _check_residual(residual)
    arrived = tokens
    for layer in reversed(layers):
        passed = np.zeros_like(arrived)
        for part, rows in _exact_rows(layer):
            passed += arrived[part] @ rows
        arrived = (1 - residual) * passed + residual * arrived
    return arrived


def _check_residual(residual: float) -> float:
    if not 0 <= residual <= 1:
        raise OutOfRangeError(f"residual is {residual}; expected a share, 0 to 1")
    return float(residual)


def _layers(weights: Any, item: int | None) -> list[Rows]:
    """Return the head-averaged rows of each layer."""
    if is_lazy(weights):
        return _layers_of_maps([weights] if is_map(weights) else list(weights), item)
    if item is not None:
        raise OutOfRangeError(
            f"item is {item!r}, and weights are no AttentionMaps; they are head-averaged, shape "
            f"(layer, query, key), and have no batch: choose the item before"
        )
    array = to_weights(weights)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ShapeError(
            f"rollout takes head-averaged self-attention, shape (layer, query, key) with as many "
            f"queries as keys; got {array.shape}{_hint(array)}"
        )
    return [rows_of_array(layer) for layer in array]


def _layers_of_maps(maps: list[Any], item: int | None) -> list[Rows]:
    if not all(is_map(each) for each in maps):
        raise ShapeError(
            "rollout takes one AttentionMap for each layer, got lists of them. For the last call "
            "of each layer: [calls[-1] for calls in captured.attention.layers]"
        )
    sizes = {each.shape[2:] for each in maps}
    if len(sizes) > 1 or any(queries != keys for queries, keys in sizes):
        raise ShapeError(
            f"rollout takes self-attention of one size in all layers, with as many queries as "
            f"keys; got AttentionMaps with (query, key) of {sorted(sizes)}"
        )
    return [
        rows_of_map(each, check_item(item, each.shape, f"weights[{layer}]")).mean()
        for layer, each in enumerate(maps)
    ]


def _exact_rows(layer: Rows) -> Iterator[tuple[slice, Floats]]:
    """Go through a layer's rows, scaled to sum to 1; those that see nothing keep what they have.

    Rows of low-precision weights sum to nearly 1; the error would grow with each layer.
    """
    for part, rows in layer.blocks():
        sums = rows.sum(axis=-1, keepdims=True)
        blind = np.flatnonzero(~(sums > 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            exact = rows / sums
        exact[blind] = 0
        exact[blind, part.start + blind] = 1
        yield part, exact


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
