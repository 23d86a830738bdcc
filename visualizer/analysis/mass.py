"""How much attention goes to chosen keys."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visualizer.analysis.arrays import Floats, to_weights
from visualizer.errors import OutOfRangeError, ShapeError

__all__ = ["diagonal_mass", "mass"]


def mass(weights: Any, keys: Any) -> Floats:
    """Return the share of each query's attention that goes to the given keys.

    With `keys=0` that is the attention to CLS, or to the first token of a text: the sink mass of
    Xiao et al. (2023).

    Args:
        weights: Shape `(..., query, key)`; rows sum to 1.
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
    array = to_weights(weights)
    chosen = np.zeros(array.shape[-1], dtype=bool)
    chosen[_places(keys, array.shape)] = True
    # Both sums run over all keys, so that they round alike and the share is at most 1.
    return np.asarray(np.where(chosen, array, 0).sum(axis=-1) / array.sum(axis=-1))


def _places(keys: Any, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the chosen keys' places."""
    if keys is None or keys is ... or isinstance(keys, bool | np.bool_):
        raise OutOfRangeError(f"keys is {keys!r}; expected an index, several, a slice or a mask")
    try:
        chosen = keys
        if isinstance(keys, list | tuple):
            chosen = np.asarray(keys, dtype=None if len(keys) else np.intp)
        return np.arange(shape[-1])[chosen]
    except (IndexError, ValueError) as error:
        raise OutOfRangeError(
            f"keys {keys!r} don't fit weights of shape {shape}, with {shape[-1]} keys"
        ) from error


def diagonal_mass(weights: Any) -> Floats:
    """Return the share of each token's attention that goes to the token itself.

    Args:
        weights: Self-attention, shape `(..., token, token)`; rows sum to 1.
    Returns:
        Shape `(..., token)`, 0 to 1.
    Raises:
        ShapeError: Fewer than two axes, or the last two differ.
        NotWeightsError: Rows that are not weights.

    Example:
        >>> diagonal_mass([[0.25, 0.75], [0.5, 0.5]])
        array([0.25, 0.5 ])
    """
    array = to_weights(weights)
    if array.shape[-1] != array.shape[-2]:
        raise ShapeError(f"the diagonal needs as many queries as keys, got shape {array.shape}")
    return np.asarray(np.diagonal(array, axis1=-2, axis2=-1) / array.sum(axis=-1))
