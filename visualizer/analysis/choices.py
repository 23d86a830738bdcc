"""Which item, head, keys or part: what was chosen, having made sure that there is such a one."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visualizer.errors import OutOfRangeError, ShapeError

__all__ = [
    "check_between",
    "check_index",
    "check_item",
    "check_part",
    "check_place",
    "key_places",
]


def check_index(index: Any, count: int, name: str) -> int:
    """Return an index, having made sure that it is one of `count`.

    Raises:
        OutOfRangeError: It is not.
    """
    number = _whole(index)
    if number is None:
        raise OutOfRangeError(f"{name} is {index!r}; expected a whole number, 0 to {count - 1}")
    if not 0 <= number < count:
        raise OutOfRangeError(
            f"{name} {number} is out of range: there are {count}, 0 to {count - 1}"
        )
    return number


def check_place(index: Any, count: int, name: str) -> int:
    """Return an index, counted from the start; negative ones are counted from the end.

    Raises:
        OutOfRangeError: It is none of `count`.
    """
    number = _whole(index)
    if number is None or not -count <= number < count:
        raise OutOfRangeError(
            f"{name} is {index!r}; expected 0 to {count - 1}, or -1 to -{count} from the end"
        )
    return number % count


def check_between(number: Any, least: int, most: int, name: str) -> int:
    """Return a whole number, having made sure that it is between two others, or one of them.

    Raises:
        OutOfRangeError: It is not.
    """
    whole = _whole(number)
    if whole is None or not least <= whole <= most:
        raise OutOfRangeError(f"{name} is {number!r}; expected a whole number, {least} to {most}")
    return whole


def key_places(keys: Any, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the places of chosen keys, given as an index, several, a slice or a mask.

    Raises:
        OutOfRangeError: A key that does not exist.
    """
    if keys is None or keys is ... or isinstance(keys, bool | np.bool_):
        raise OutOfRangeError(f"keys is {keys!r}; expected an index, several, a slice or a mask")
    try:
        chosen = keys
        if isinstance(keys, list | tuple):
            chosen = np.asarray(keys, dtype=None if len(keys) else np.intp)
        return np.atleast_1d(np.arange(shape[-1])[chosen])
    except (IndexError, ValueError) as error:
        raise OutOfRangeError(
            f"keys {keys!r} don't fit weights of shape {shape}, with {shape[-1]} keys"
        ) from error


def check_item(item: int | None, shape: tuple[int, ...], name: str) -> int:
    """Return which item of a batch is meant; it may be left out where there is one.

    Args:
        item: Its index, or None.
        shape: Of the maps, `(batch, head, query, key)`.
        name: What messages call them.
    Raises:
        ShapeError: There are several, and None was given.
        OutOfRangeError: There is no such item.
    """
    if item is None and shape[0] > 1:
        raise ShapeError(
            f"{name} has a batch of {shape[0]}, shape {shape}: choose one with item=0 to "
            f"item={shape[0] - 1}"
        )
    return check_index(item or 0, shape[0], "item")


def check_part(part: slice | None, count: int, name: str) -> slice:
    """Return a part of `count` neighbours with its start and stop; None is all.

    Raises:
        OutOfRangeError: What is no slice, an empty one, one with a step, one that goes too far.
    """
    if part is None:
        return slice(0, count)
    try:
        found = range(*part.indices(count)) if isinstance(part, slice) else range(0)
        too_far = isinstance(part, slice) and part.stop is not None and part.stop > count
    except TypeError:
        found, too_far = range(0), False
    if not found or found.step != 1 or too_far:
        raise OutOfRangeError(
            f"{name} is {part!r}; expected a slice of neighbours, of the {count} that there are, "
            f"as slice(0, {count})"
        )
    return slice(found.start, found.stop)


def _whole(number: Any) -> int | None:
    """Return a whole number, or None for what is none; True and False are none."""
    try:
        return None if isinstance(number, bool | np.bool_) else operator.index(number)
    except TypeError:
        return None
