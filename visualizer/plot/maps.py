"""From what people have (one map, a layer's heads, the whole cache) to what a figure draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from visualizer.analysis.arrays import ROUNDING, Floats, check_weights, to_floats
from visualizer.analysis.choices import check_index, check_item, check_part
from visualizer.analysis.lazy import is_lazy, is_map
from visualizer.analysis.rows import Rows, rows_of_array, rows_of_map
from visualizer.errors import NotWeightsError, OutOfRangeError, ShapeError

if TYPE_CHECKING:
    from visualizer.attention import AttentionMap

__all__ = [
    "Columns",
    "Head",
    "averages_of",
    "columns_of",
    "every_item",
    "heads_of",
    "layers_of",
    "list_of_layers",
    "one_map",
]

Head = int | Literal["mean"] | None


def one_map(
    values: Any, item: int | None = None, head: Head = None, *, name: str = "att_map"
) -> Rows:
    """Return one head's map, shape `(query, key)`; of an `AttentionMap` nothing is computed yet.

    Args:
        values: Shape `(query, key)`, `(head, query, key)` or `(batch, head, query, key)`.
        item: Which item of the batch; may be left out where there is one.
        head: Which head, or "mean" for their average; may be left out where there is one.
        name: What messages call it.
    """
    layer = _layer(values, name)
    item = check_item(item, layer.shape, name)
    return _checked_rows(layer, item, _chosen_heads(layer.shape[1:], head, name), name).mean()


def heads_of(values: Any, item: int | None = None, *, name: str = "att_map") -> Rows:
    """Return the maps of one layer and one item of the batch, shape `(head, query, key)`.

    Of an `AttentionMap` nothing is computed yet.

    Raises:
        ShapeError: Another number of axes, or a batch and no choice of an item.
        NotWeightsError: Values that are no attention weights, nor a part of them.
        OutOfRangeError: An item that does not exist.
    """
    layer = _layer(values, name)
    return _checked_rows(layer, check_item(item, layer.shape, name), slice(None), name)


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """A map, or a part of one, of which columns are taken.

    Attributes:
        shape: `(query, key)`.
        take: Returns how much each query looks at a key, shape `(query,)`.
    """

    shape: tuple[int, int]
    take: Callable[[int], Floats]


def columns_of(
    values: Any,
    item: int | None = None,
    head: Head = "mean",
    *,
    queries: slice | None = None,
    keys: slice | None = None,
    name: str = "att_map",
) -> Columns:
    """Return one map, or some queries and keys of it; of an `AttentionMap` nothing is computed yet.

    Args:
        values: Shape `(query, key)`, `(head, query, key)` or `(batch, head, query, key)`.
        item: Which item of the batch; may be left out where there is one.
        head: Which head, or "mean" for their average.
        queries: Which queries; None is all.
        keys: Which keys; None is all.
        name: What messages call it.
    """
    layer = _layer(values, name)
    item = check_item(item, layer.shape, name)
    heads = _chosen_heads(layer.shape[1:], head, name)
    rows = check_part(queries, layer.shape[2], "queries")
    columns = check_part(keys, layer.shape[3], "keys")
    if not is_map(layer):
        _check(layer[item, heads], name)

    def take(key: int) -> Floats:
        key += columns.start
        whole = layer.column(key, item=item) if is_map(layer) else layer[item, :, :, key]
        taken = whole[heads, rows]
        if not (taken.min() >= 0 and taken.max() <= 1 + ROUNDING):
            raise NotWeightsError(
                f"{name}, key {key}, has weights from {taken.min():.3g} to {taken.max():.3g}; "
                f"expected 0 to 1. Where a mask hides every key, softmax gives NaN"
            )
        return np.asarray(taken.mean(axis=0))

    return Columns((rows.stop - rows.start, columns.stop - columns.start), take)


def every_item(values: Any, *, name: str = "att_map") -> Floats | AttentionMap:
    """Return the maps of one layer, shape `(batch, head, query, key)`."""
    layer = _layer(values, name)
    if isinstance(layer, np.ndarray):
        _check(layer, name)
    return layer


def layers_of(maps: Any, item: int | None = None) -> list[Rows]:
    """Return the maps of every layer, each of shape `(head, query, key)`.

    Args:
        maps: A list with an entry for each layer, as `get_local.cache["Attention.forward"]` is,
            or an array whose first axis is the layer.
        item: Which item of the batch; may be left out where there is one.
    """
    entries = list_of_layers(maps)
    return [heads_of(entry, item, name=f"maps[{index}]") for index, entry in enumerate(entries)]


def averages_of(maps: Any, item: int | None = None) -> list[Rows]:
    """Return the average of the heads of every layer, shape `(query, key)`; arguments as above.

    Raises:
        NotWeightsError: Arrays whose rows don't sum to 1.
    """
    averages = []
    for index, entry in enumerate(list_of_layers(maps)):
        name = f"maps[{index}]"
        layer = _layer(entry, name)
        if is_map(layer):  # its rows may sum to less, to NaN even: rollout knows what to do
            average = rows_of_map(layer, check_item(item, layer.shape, name)).mean()
        else:
            mean = heads_of(layer, item, name=name).take(slice(None)).mean(axis=0)
            check_weights(mean, name)
            average = rows_of_array(mean)
        averages.append(average)
    return averages


def list_of_layers(maps: Any) -> Sequence[Any]:
    """Return what has an entry for each layer as a sequence of them; a lazy map is one layer."""
    if is_map(maps):
        return [maps]
    if not isinstance(maps, Iterable) or isinstance(maps, str | bytes | dict):
        raise ShapeError(
            f"maps must hold an entry for each layer, as captured.attention or "
            f"get_local.cache['Attention.forward'] does; got {type(maps).__name__}"
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


def _layer(values: Any, name: str) -> Floats | AttentionMap:
    """Return the maps of a layer, shape `(batch, head, query, key)`; their values aren't looked at.

    A lazy map stays one, out of lists of length 1, too.
    """
    if not is_lazy(values):
        return _batch(values, name)
    while not is_map(values):
        if len(values) > 1:
            raise ShapeError(
                f"{name} holds {len(values)} entries with AttentionMaps; expected a single map, "
                f"(batch, head, query, key): choose a layer or a call, as {name}[-1]"
            )
        values = values[0]
    return values


def _batch(values: Any, name: str) -> Floats:
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


def _chosen_heads(shape: tuple[int, ...], head: Head, name: str) -> slice:
    if isinstance(head, str):
        if head != "mean":
            raise OutOfRangeError(f"head is {head!r}; expected a number or 'mean'")
        return slice(None)
    if head is None and shape[0] > 1:
        raise ShapeError(
            f"{name} has {shape[0]} heads, shape {shape}: choose one with head=0 to "
            f"head={shape[0] - 1}, or their average with head='mean'"
        )
    index = check_index(head or 0, shape[0], "head")
    return slice(index, index + 1)


def _checked_rows(layer: Floats | AttentionMap, item: int, heads: slice, name: str) -> Rows:
    """Return some heads of an item: weights, or parts of some, at the latest when taken."""
    if not is_map(layer):
        part = layer[item, heads]
        _check(part, name)
        return rows_of_array(part)
    rows = rows_of_map(layer, item, heads)

    def take(part: slice) -> Floats:
        taken = rows.take(part)
        if not (taken.min() >= 0 and taken.sum(axis=-1).max() <= 1 + ROUNDING):
            some = f"{name}, queries {part.start} to {part.stop - 1}"
            _check(taken, name if part == slice(0, rows.shape[-2]) else some)
        return taken

    return replace(rows, take=take)


def _check(array: Floats, name: str) -> None:
    """Make sure that rows are weights or parts of some; messages leave axes of size 1 out."""
    while array.ndim > 2 and len(array) == 1:
        array = array[0]
    check_weights(array, name, parts=True)
