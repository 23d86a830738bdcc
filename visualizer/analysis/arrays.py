"""What arrives, as arrays of floating point: tensors of any type and device, arrays, lists."""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from visualizer.analysis.lazy import is_map
from visualizer.errors import NotWeightsError, ShapeError

__all__ = ["ROUNDING", "Floats", "check_weights", "to_floats", "to_integers", "to_weights"]

Floats = NDArray[np.floating[Any]]
"""In fact float32 or float64."""

ROUNDING: Final = 0.02
"""How far a row's sum may be from 1: what the rounding of bfloat16 and float16 adds up to."""


def to_floats(values: Any, name: str = "weights") -> Floats:
    """Return tensors, arrays, numbers and (nested) lists of them as a float32 or float64 array.

    float64 stays; everything else of a numeric type becomes float32. A tensor may be on any
    device, require gradients, and be of a type that numpy has not, such as bfloat16.

    Raises:
        ShapeError: Lists of unequal lengths, or what is no array of numbers at all.
    """
    try:
        array = np.asarray(_without_tensors(values))
    except (ValueError, TypeError) as error:
        raise ShapeError(
            f"{name} can't be made an array: {str(error).rstrip('.')}. Expected a tensor, an "
            f"array, or lists of equal lengths"
        ) from error
    if array.dtype == np.float64:
        return array
    try:
        if array.dtype.kind not in "biufV":  # V: numpy's name for extension types, as bfloat16
            raise TypeError(f"its type is {array.dtype}")
        return array.astype(np.float32, copy=False)
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"{name} must be an array of real numbers, got {type(values).__name__}: {error}"
        ) from error


def to_integers(values: Any, name: str) -> NDArray[np.int64]:
    """Return tensors, arrays and lists of whole numbers as an array.

    Raises:
        ShapeError: Lists of unequal lengths, or numbers that are not whole.
    """
    try:
        array = np.asarray(_without_tensors(values))
        if array.dtype.kind not in "iu":
            raise TypeError(f"its type is {array.dtype}")
    except (ValueError, TypeError) as error:
        raise ShapeError(
            f"{name} must be an array of whole numbers, got {type(values).__name__}: {error}"
        ) from error
    return array.astype(np.int64)


def to_weights(values: Any, name: str = "weights") -> Floats:
    """Return attention weights as an array, its last two axes query and key.

    Raises:
        ShapeError: Fewer axes, or none of a size above zero.
        NotWeightsError: Negative or not finite values, or rows that don't sum to 1.
    """
    array = to_floats(values, name)
    if array.ndim < 2 or 0 in array.shape:
        raise ShapeError(f"{name} has shape {array.shape}; expected (…, query, key), none empty")
    check_weights(array, name)
    return array


def check_weights(array: Floats, name: str = "weights", *, parts: bool = False) -> None:
    """Make sure that rows are weights: none negative, each row with the sum 1.

    Args:
        array: Shape `(..., query, key)`.
        name: What the message calls it.
        parts: Rows may sum to less, since some of their keys were cut off.
    Raises:
        NotWeightsError: They are not.
    """
    lowest = float(array.min())
    if not np.isfinite(lowest) or not np.isfinite(array.max()):
        rows = np.argwhere(~np.isfinite(array).all(axis=-1))
        raise NotWeightsError(
            f"{name}, of shape {array.shape}, has {len(rows)} rows with NaN or infinity, the first "
            f"at {_place(rows[0])}. Are these masked scores before softmax? Where a mask hides "
            f"every key, softmax gives NaN: drop those queries"
        )
    if lowest < 0:
        raise NotWeightsError(
            f"{name}, of shape {array.shape}, has negative values, down to {lowest:.3g}; attention "
            f"weights are never negative. Are these the scores before softmax?"
        )
    sums = array.sum(axis=-1, dtype=np.float64)
    too_far = sums - 1 > ROUNDING if parts else np.abs(sums - 1) > ROUNDING
    if too_far.any():
        where = np.argwhere(too_far)[0]
        expected = "at most 1" if parts else "1"
        raise NotWeightsError(
            f"rows of {name}, of shape {array.shape}, are not weights: the one at {_place(where)} "
            f"sums to {sums[tuple(where)]:.4g}, expected {expected}. {_likely_cause(array, sums)}"
        )


def _likely_cause(array: Floats, sums: NDArray[np.float64]) -> str:
    columns = array.sum(axis=-2, dtype=np.float64)
    if np.abs(columns - 1).max() <= ROUNDING:
        return "Its columns sum to 1: are query and key swapped?"
    if sums.max() <= 1 + ROUNDING:
        return "Were keys cut off, or does dropout act (model.eval() turns it off)?"
    return "Are these scores before softmax, summed heads, or values after dropout in training?"


def _place(index: NDArray[np.intp]) -> str:
    return "[" + ", ".join(str(number) for number in index) + "]"


def _without_tensors(values: Any) -> Any:
    """Replace tensors and lazy maps, alone and in lists, by arrays; torch is never imported."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        tensor = values.detach()
        if tensor.dtype not in (torch.float32, torch.float64) and tensor.is_floating_point():
            tensor = tensor.float()
        return tensor.numpy(force=True)
    if is_map(values):
        return np.asarray(values)
    if isinstance(values, list | tuple):
        return [_without_tensors(value) for value in values]
    return values
