"""Attention rollout."""

from __future__ import annotations

from typing import Any

import numpy as np

from visualizer.analysis.arrays import Floats, to_weights
from visualizer.errors import OutOfRangeError, ShapeError

__all__ = ["rollout"]


def rollout(weights: Any, *, residual: float = 0.5) -> Floats:
    """Propagate attention through the layers (Abnar & Zuidema, 2020, eq. 1).

    Each layer passes on what its attention collects and, beside it, each token's own value by the
    residual connection: `(1 - residual) · weights + residual · identity`. The result is the
    product of these over the layers, the last one leftmost.

    Args:
        weights: Head-averaged, shape `(layer, query, key)`; rows sum to 1. An array, a tensor, or
            a list with one for each layer.
        residual: Share of the identity path, 0 to 1; the paper takes 0.5.
    Returns:
        Shape `(query, key)`: how much of each input token arrives at each output token; rows sum
        to 1.
    Raises:
        ShapeError: Not three axes, or the last two differ.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: `residual` outside of 0 to 1.

    Example:
        >>> import numpy as np
        >>> rollout(np.full((2, 2, 2), 0.5))
        array([[0.625, 0.375],
               [0.375, 0.625]])
    """
    if not 0 <= residual <= 1:
        raise OutOfRangeError(f"residual is {residual}; expected a share, 0 to 1")
    residual = float(residual)
    layers = to_weights(weights)
    if layers.ndim != 3 or layers.shape[1] != layers.shape[2]:
        raise ShapeError(
            f"rollout takes head-averaged self-attention, shape (layer, query, key) with as many "
            f"queries as keys; got {layers.shape}{_hint(layers)}"
        )
    result: Floats = np.eye(layers.shape[-1], dtype=layers.dtype)
    for layer in layers:
        # Rows of low-precision weights sum to nearly 1; the error would grow with each layer.
        exact = layer / layer.sum(axis=-1, keepdims=True)
        result = (1 - residual) * (exact @ result) + residual * result
    return result


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
