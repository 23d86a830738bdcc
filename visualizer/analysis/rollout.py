"""Attention rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from visualizer.analysis.arrays import Floats
from visualizer.analysis.choices import check_place
from visualizer.analysis.layers import check_residual, exact_rows, layers_of
from visualizer.analysis.rows import Rows

__all__ = ["rollout", "rollout_row"]


def rollout(
    weights: Any, *, residual: float = 0.5, item: int | None = None, query: int | None = None
) -> Floats:
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
        query: The output token to compute the row of, without the others; -1 is the last.
    Returns:
        Shape `(query, key)`, or `(key,)` of one query: how much of each input token arrives at
        each output token; rows sum to 1.
    Raises:
        ShapeError: Not three axes, or the last two differ; several items and no choice.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: `residual` outside of 0 to 1; an item or a query that does not exist.

    Example:
        >>> import numpy as np
        >>> rollout(np.full((2, 2, 2), 0.5))
        array([[0.625, 0.375],
               [0.375, 0.625]])
    """
    residual = check_residual(residual)
    layers = layers_of(weights, item, "rollout")
    dtype = np.result_type(*(layer.dtype for layer in layers))
    tokens = layers[0].shape[-1]
    if query is not None:
        one = np.eye(1, tokens, check_place(query, tokens, "query"), dtype=dtype)[0]
        return rollout_row(layers, one, residual=residual)
    result: Floats = np.eye(tokens, dtype=dtype)
    for layer in layers:
        after = np.empty_like(result)
        for part, rows in exact_rows(layer):
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
    residual = check_residual(residual)
    arrived = tokens
    for layer in reversed(layers):
        passed = np.zeros_like(arrived)
        for part, rows in exact_rows(layer, arrived != 0):
            passed += arrived[part] @ rows
        arrived = (1 - residual) * passed + residual * arrived
    return arrived
