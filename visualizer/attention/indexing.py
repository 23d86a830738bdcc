"""Indices as numpy takes them, turned into the part of a map that they need."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visualizer.attention.call import AttentionCall
from visualizer.attention.gradient import OutputGradient, gradient_of
from visualizer.attention.joined import Joined
from visualizer.attention.picks import Pick, Shape
from visualizer.attention.record import Source, device_of, dtype_of
from visualizer.attention.rows import head_runs, runs
from visualizer.attention.scores import weights
from visualizer.attention.sizes import check_size
from visualizer.attention.stream import BLOCK_BYTES
from visualizer.attention.unobserved import unobserved
from visualizer.errors import OutOfRangeError

__all__ = ["keys_of", "one_of", "part_of", "select"]

AXES = ("batch", "head", "query", "key")


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What an index needs, and how to get it from there.

    Attributes:
        needed: Ascending indices, an axis each.
        index: An index into what `needed` gives; numpy does the rest.
    """

    needed: tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]
    index: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of what is needed."""
        return tuple(len(axis) for axis in self.needed)


def select(index: Any, shape: Shape) -> Selection:
    """Resolve an index: integers, slices, an ellipsis, and lists or arrays of integers or booleans.

    Raises:
        OutOfRangeError: Anything else, too many axes, or an index out of bounds.
    """
    given = list(index) if isinstance(index, tuple) else [index]
    dots = [place for place, part in enumerate(given) if part is Ellipsis]
    if len(given) - len(dots) > 4 or len(dots) > 1:
        raise OutOfRangeError(f"index {index!r} has more axes than a map: {', '.join(AXES)}")
    missing = [slice(None)] * (4 - len(given) + len(dots))
    if dots:
        given[dots[0] : dots[0] + 1] = missing
    else:
        given += missing
    axes = [_axis(part, shape[axis], axis) for axis, part in enumerate(given)]
    items, heads, queries, keys = (needed for needed, _ in axes)
    return Selection((items, heads, queries, keys), tuple(rest for _, rest in axes))


def one_of(index: Any, size: int, axis: int) -> int:
    """Return an index of an axis, counted from the start.

    Raises:
        OutOfRangeError: No integer, or out of bounds.
    """
    try:
        if isinstance(index, bool | np.bool_):
            raise TypeError
        place = operator.index(index)
    except TypeError:
        raise OutOfRangeError(
            f"{AXES[axis]} {index!r} of a map: expected an integer, a slice, an ellipsis, or a "
            f"list or array of these (no None)"
        ) from None
    if not -size <= place < size:
        raise OutOfRangeError(
            f"{AXES[axis]} {place} is out of range: the map has {size}, 0 to {size - 1}"
        )
    return place % size


def keys_of(keys: Any, shape: Shape) -> list[int]:
    """Return keys as ascending indices.

    Args:
        keys: An index, several, a slice, or a boolean mask of shape `(key,)`.
        shape: Of the map.
    Raises:
        OutOfRangeError: Anything else, or a key that does not exist.
    """
    if keys is None or keys is ...:
        raise OutOfRangeError(f"keys is {keys!r}; expected an index, several, a slice or a mask")
    keys = list(keys) if isinstance(keys, tuple) else keys
    return list(select((0, 0, 0, keys), shape).needed[3])


def part_of(
    source: Source | OutputGradient, index: Any, max_bytes: int | None, name: str
) -> NDArray[np.floating[Any]]:
    """Compute a part of a map or of its gradient, rows in blocks.

    Args:
        source: Of the map, or of its gradient.
        index: As numpy takes it.
        max_bytes: How large it may be.
        name: What the message calls it.
    Raises:
        OutOfRangeError: As for `select`.
        MapTooLargeError: It would take more than `max_bytes`.
    """
    batch, heads, queries, keys = source.shape
    selection = select(index, (batch, heads, queries, keys))
    if max_bytes is not None:
        check_size(selection.shape, dtype_of(source).itemsize, max_bytes, name)
    with unobserved(device_of(source).type):
        result = torch.empty(selection.shape, dtype=dtype_of(source), device="cpu")
        _gather(result, source, selection.needed)
        return np.asarray(result.numpy()[selection.index])


def _gather(
    out: Tensor, source: Source | OutputGradient, needed: tuple[Sequence[int], ...]
) -> None:
    if isinstance(source, Joined):
        _gather_parts(out, source, needed)
        return
    items, heads, queries, keys = needed
    group = max(1, len(heads)) if isinstance(source, Tensor) else source.group
    kept = slice(keys[0], keys[-1] + 1) if len(keys) and len(runs(keys)) == 1 else list(keys)
    for place, item in enumerate(items):
        first = 0
        for run in head_runs(heads, group):
            count = run.stop - run.start
            rows = out[place, first : first + count]
            _fill(rows, source, slice(item, item + 1), run, queries, kept)
            first += count


def _gather_parts(out: Tensor, source: Joined, needed: tuple[Sequence[int], ...]) -> None:
    """Compute each part where its rows and keys are needed; the others are 0."""
    items, heads, queries, keys = needed
    out.zero_()
    for part in source.parts:
        rows, its_queries = _within(queries, part.queries)
        columns, its_keys = _within(keys, part.keys)
        if its_queries and its_keys:
            inner = (items, heads, its_queries, its_keys)
            _gather(out[:, :, rows, columns], part.source, inner)


def _within(indices: Sequence[int], part: slice) -> tuple[slice, Sequence[int]]:
    """Return where ascending indices lie in a part of their axis, and those, counted from it."""
    place = slice(bisect_left(indices, part.start), bisect_left(indices, part.stop))
    inside = indices[place]
    if isinstance(inside, range):
        return place, range(inside.start - part.start, inside.stop - part.start, inside.step)
    return place, [index - part.start for index in inside]


def _fill(
    out: Tensor,
    source: AttentionCall | OutputGradient | Tensor,
    item: slice,
    heads: slice,
    queries: Sequence[int],
    keys: slice | list[int],
) -> None:
    """Compute rows of some heads into `out`, shape `(head, query, key)`."""
    size = source.shape[3] * dtype_of(source).itemsize * (heads.stop - heads.start)
    step = max(1, BLOCK_BYTES // size)
    for start in range(0, len(queries), step):
        rows = _rows(source, item, heads, queries[start : start + step])
        out[:, start : start + step] = rows[0][..., keys]


def _rows(
    source: AttentionCall | OutputGradient | Tensor,
    item: slice,
    heads: slice,
    queries: Sequence[int],
) -> Tensor:
    picked: slice | Tensor = slice(queries[0], queries[-1] + 1)
    if queries[-1] + 1 - queries[0] != len(queries):
        picked = torch.tensor(list(queries), dtype=torch.int64, device=device_of(source))
    if isinstance(source, Tensor):
        return source[item, heads][:, :, picked].to(dtype_of(source))
    pick = Pick(item, heads, picked, slice(0, source.shape[3]))
    return weights(source, pick) if isinstance(source, AttentionCall) else gradient_of(source, pick)


def _axis(part: Any, size: int, axis: int) -> tuple[Sequence[int], Any]:
    """Return which indices of an axis are needed, and the index into these."""
    if isinstance(part, slice):
        picked = _slice(part, size, axis)
        return (picked, slice(None)) if picked.step > 0 else (picked[::-1], slice(None, None, -1))
    if isinstance(part, list | np.ndarray | Tensor) and np.ndim(part) > 0:
        places = _array(part, size, axis)
        unique, inverse = np.unique(places, return_inverse=True)
        return unique.tolist(), inverse.reshape(places.shape)
    place = one_of(part, size, axis)
    return range(place, place + 1), 0


def _slice(part: slice, size: int, axis: int) -> range:
    try:
        return range(*part.indices(size))
    except (TypeError, ValueError) as error:
        raise OutOfRangeError(f"{AXES[axis]} {part!r} of a map: {error}") from error


def _array(part: Any, size: int, axis: int) -> Any:
    array = np.asarray(part) if len(part) else np.zeros(0, np.intp)
    if array.dtype == np.bool_ and array.shape == (size,):
        return np.flatnonzero(array)
    if array.dtype.kind not in "iu":
        raise OutOfRangeError(
            f"an array of {array.dtype}, shape {array.shape}, is no index for the {size} of "
            f"{AXES[axis]}; expected integers, or {size} booleans"
        )
    if array.size and not -size <= array.min() <= array.max() < size:
        worst = array.min() if array.min() < -size else array.max()
        raise OutOfRangeError(
            f"{AXES[axis]} {worst} is out of range: the map has {size}, 0 to {size - 1}"
        )
    return np.where(array < 0, array + size, array).astype(np.intp)
