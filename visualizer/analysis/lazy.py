"""Maps that are computed where they are looked at: how they are recognised, alone and in lists."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from visualizer.errors import ShapeError

if TYPE_CHECKING:
    from visualizer.attention import AttentionMap

__all__ = ["each_map", "is_computed", "is_lazy", "is_map"]


def is_map(values: Any) -> TypeGuard[AttentionMap]:
    """Return whether this is an `AttentionMap`; the module that has them is not loaded for it."""
    attention = sys.modules.get("visualizer.attention")
    return attention is not None and isinstance(values, attention.AttentionMap)


def is_lazy(values: Any) -> bool:
    """Return whether this is an `AttentionMap`, or a (nested) sequence of nothing else."""
    if is_map(values):
        return True
    if not isinstance(values, Sequence) or isinstance(values, str | bytes) or not values:
        return False
    return all(is_lazy(each) for each in values)


def is_computed(attention_map: AttentionMap) -> bool:
    """Return whether a map's weights are computed from queries and keys.

    Other weights were given, in whatever precision: their rows sum to 1 but for its rounding.
    """
    call = sys.modules["visualizer.attention"].AttentionCall
    return isinstance(attention_map.record.read(), call)


def each_map(
    values: Any, function: Callable[[AttentionMap], NDArray[Any]], name: str = "weights"
) -> NDArray[Any]:
    """Return what a function makes of a map, or of each map of a list, one axis more for a list.

    Args:
        values: What `is_lazy` says yes to.
        function: From a map to an array.
        name: What messages call the values.
    Raises:
        ShapeError: Lists of unequal lengths, or of maps of unequal shapes.
    """
    if is_map(values):
        return function(values)
    shapes = sorted({_shape(each) for each in values})
    if len(shapes) > 1:
        raise ShapeError(
            f"{name} can't be made an array: they hold maps of the shapes {shapes}. Take the maps "
            f"one by one"
        )
    return np.stack([each_map(each, function, name) for each in values])


def _shape(values: Any) -> tuple[int, ...]:
    """Return the shape of a map, or that which a list of them would have, by its first."""
    return tuple(values.shape) if is_map(values) else (len(values), *_shape(values[0]))
