"""How much attention goes to chosen keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from visualizer.analysis.arrays import ROUNDING, Floats, to_weights
from visualizer.analysis.choices import key_places
from visualizer.analysis.lazy import each_map, is_computed, is_lazy
from visualizer.errors import ShapeError

if TYPE_CHECKING:
    from visualizer.attention import AttentionMap

__all__ = ["diagonal_mass", "mass"]


def mass(weights: Any, keys: Any) -> Floats:
    """Return the share of each query's attention that goes to the given keys.

    With `keys=0` that is the attention to CLS, or to the first token of a text: the sink mass of
    Xiao et al. (2023).

    Args:
        weights: Shape `(..., query, key)`; rows sum to 1. Or an `AttentionMap`, or a list of them,
            which are gone through row by row; there, a row that sums to less has given the rest
            to a sink.
        keys: An index, a list of indexes, a slice, or a boolean mask of shape `(key,)`.
    Returns:
        Shape `(..., query)`, 0 to 1.
    Raises:
        ShapeError: Fewer than two axes.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: A key that does not exist.

    Example:
        >>> mass([[0.25, 0.75], [0.5, 0.5]], keys=0)
        array([0.25, 0.5 ])
    """
    if is_lazy(weights):
        return each_map(weights, lambda one: _mass_of_map(one, keys))
    array = to_weights(weights)
    chosen = np.zeros(array.shape[-1], dtype=bool)
    chosen[key_places(keys, array.shape)] = True
    # Both sums run over all keys, so that they round alike and the share is at most 1.
    return np.asarray(np.where(chosen, array, 0).sum(axis=-1) / array.sum(axis=-1))


def diagonal_mass(weights: Any) -> Floats:
    """Return the share of each token's attention that goes to the token itself.

    Args:
        weights: Self-attention, shape `(..., token, token)`; rows sum to 1. Or an `AttentionMap`,
            or a list of them, as for `mass`.
    Returns:
        Shape `(..., token)`, 0 to 1.
    Raises:
        ShapeError: Fewer than two axes, or the last two differ.
        NotWeightsError: Rows that are not weights.

    Example:
        >>> diagonal_mass([[0.25, 0.75], [0.5, 0.5]])
        array([0.25, 0.5 ])
    """
    if is_lazy(weights):
        return each_map(weights, _diagonal_of_map)
    array = to_weights(weights)
    _check_square(array.shape)
    return np.asarray(np.diagonal(array, axis1=-2, axis2=-1) / array.sum(axis=-1))


def _check_square(shape: tuple[int, ...]) -> None:
    if shape[-1] != shape[-2]:
        raise ShapeError(f"the diagonal needs as many queries as keys, got shape {shape}")


def _mass_of_map(attention_map: AttentionMap, keys: Any) -> Floats:
    share = attention_map.mass(np.unique(key_places(keys, attention_map.shape)))
    if not is_computed(attention_map):
        share = _without_rounding(share, attention_map.mass(slice(None)))
    return np.minimum(share, 1)


def _diagonal_of_map(attention_map: AttentionMap) -> Floats:
    _check_square(attention_map.shape)
    computed = is_computed(attention_map)
    result = np.empty(attention_map.shape[:3], attention_map.dtype)
    for block in attention_map.blocks():
        own = np.diagonal(block.weights, block.queries.start, axis1=1, axis2=2)
        if not computed:
            own = _without_rounding(own, block.weights.sum(axis=-1))
        result[block.item, :, block.queries] = own
    return np.minimum(result, 1)


def _without_rounding(share: Floats, sums: Floats) -> Floats:
    """Divide by rows' sums where these are 1 but for rounding; the others have given to a sink."""
    exact = np.abs(sums - 1) <= ROUNDING
    return np.divide(share, sums, out=share.copy(), where=exact)
