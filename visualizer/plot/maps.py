"""From what people have (one map, a layer's heads, the whole cache) to what a figure draws."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from visualizer.analysis.arrays import Floats, check_weights, to_floats
from visualizer.errors import OutOfRangeError, ShapeError

__all__ = ["Head", "check_index", "every_item", "heads_of", "layers_of", "one_map"]

Head = int | Literal["mean"] | None


def one_map(
    values: Any, item: int | None = None, head: Head = None, *, name: str = "att_map"
) -> Floats:
    """Return one head's map, shape `(query, key)`.

    Args:
        values: Shape `(query, key)`, `(head, query, key)` or `(batch, head, query, key)`.
        item: Which item of the batch; may be left out where there is one.
        head: Which head, or "mean" for their average; may be left out where there is one.
        name: What messages call it.
    """
    heads = _item_of(values, item, name)
    if isinstance(head, str):
        if head != "mean":
            raise OutOfRangeError(f"head is {head!r}; expected a number or 'mean'")
    else:
        if head is None and len(heads) > 1:
            raise ShapeError(
                f"{name} has {len(heads)} heads, shape {heads.shape}: choose one with head=0 to "
                f"head={len(heads) - 1}, or their average with head='mean'"
            )
        index = check_index(head or 0, len(heads), "head")
        heads = heads[index : index + 1]
    _check(heads, name)
    return heads.mean(axis=0)


def heads_of(values: Any, item: int | None = None, *, name: str = "att_map") -> Floats:
    """Return the maps of one layer and one item of the batch, shape `(head, query, key)`.

    Raises:
        ShapeError: Another number of axes, or a batch and no choice of an item.
        NotWeightsError: Values that are no attention weights, nor a part of them.
        OutOfRangeError: An item that does not exist.
    """
    heads = _item_of(values, item, name)
    _check(heads, name)
    return heads


def every_item(values: Any, *, name: str = "att_map") -> Floats:
    """Return the maps of one layer, shape `(batch, head, query, key)`."""
    batch = _batch(values, name)
    _check(batch, name)
    return batch


def _check(array: Floats, name: str) -> None:
    """Make sure that rows are weights or parts of some; messages leave axes of size 1 out."""
    while array.ndim > 2 and len(array) == 1:
        array = array[0]
    check_weights(array, name, parts=True)


def _item_of(values: Any, item: int | None, name: str) -> Floats:
    batch = _batch(values, name)
    if item is None and len(batch) > 1:
        raise ShapeError(
            f"{name} has a batch of {len(batch)}, shape {batch.shape}: choose one with item=0 "
            f"to item={len(batch) - 1}"
        )
    return batch[check_index(item or 0, len(batch), "item")]


def _batch(values: Any, name: str) -> Floats:
    """Return any map as `(batch, head, query, key)`; what is in it is not looked at."""
    array = to_floats(values, name)
    while array.ndim > 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ShapeError(
            f"{name} has shape {array.shape}; expected (query, key), (head, query, key) or "
            f"(batch, head, query, key)"
            + (": choose one layer first" if array.ndim == 5 else ", none of them empty")
        )
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def layers_of(maps: Any, item: int | None = None) -> list[Floats]:
    """Return the maps of every layer, each of shape `(head, query, key)`.

    Args:
        maps: A list with an entry for each layer, as `get_local.cache["Attention.forward"]` is,
            or an array whose first axis is the layer.
        item: Which item of the batch; may be left out where there is one.
    """
    entries = list_of_layers(maps)
    return [heads_of(entry, item, name=f"maps[{index}]") for index, entry in enumerate(entries)]


def list_of_layers(maps: Any) -> Sequence[Any]:
    """Return what has an entry for each layer as a sequence of them."""
    if not isinstance(maps, Iterable) or isinstance(maps, str | bytes | dict):
        raise ShapeError(
            f"maps must hold an entry for each layer, as get_local.cache['Attention.forward'] "
            f"does; got {type(maps).__name__}"
        )
    entries = list(maps)
    if not entries:
        raise ShapeError("maps is empty: no layer to show. Did the model run while captured?")
    if getattr(entries[0], "ndim", 2) < 2:
        raise ShapeError(
            f"maps must hold an entry for each layer; it is one map, of shape {np.shape(entries)}. "
            f"Pass [att_map]"
        )
    return entries


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
