"""Which item, head, layer or part: what was chosen, having made sure that there is such a one."""

from __future__ import annotations

import operator
from typing import Any

from visualizer.errors import OutOfRangeError, ShapeError

__all__ = ["check_index", "check_item", "check_part"]


def check_index(index: Any, count: int, name: str) -> int:
    """Return an index, having made sure that it is one of `count`.

    Raises:
        OutOfRangeError: It is not.
    """
    try:
        number = operator.index(index) if not isinstance(index, bool) else None
    except TypeError:
        number = None
    if number is None:
        raise OutOfRangeError(f"{name} is {index!r}; expected a whole number, 0 to {count - 1}")
    if not 0 <= number < count:
        raise OutOfRangeError(
            f"{name} {number} is out of range: there are {count}, 0 to {count - 1}"
        )
    return number


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
