"""Dense masks, brought to a form that takes little memory."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from visualizer.attention.mask import Mask
from visualizer.attention.unobserved import unobserved
from visualizer.errors import ShapeError

__all__ = ["compact"]

Booleans = NDArray[np.bool_]

_Place = tuple[int, int, slice]
"""Item, head, queries."""

_BLOCK_BYTES = 8 * 2**20
"""Of booleans that are looked at at a time."""

_LARGE, _ABSORBS = -1e4, -1e30
"""Adding the first hides a key beside others; adding the second leaves nothing of the score."""

_REMEMBERED = 8


@dataclass(frozen=True, slots=True, eq=False)
class _Remembered:
    """A compact mask, for as long as the tensor's memory exists and nobody writes to it.

    Attributes:
        storage: The tensor's memory.
        version: Of the tensor.
        mask: What came of it; None if the tensor is to be kept.
    """

    storage: StorageWeakRef
    version: int
    mask: Mask | None


_memory: OrderedDict[tuple[Any, ...], _Remembered] = OrderedDict()
"""The last few masks: a model's layers share one. Holds no tensor that was given."""

_lock = threading.Lock()


def compact(tensor: Tensor, *, causal: int | None = None) -> Mask:
    """Return a mask in its compact form, or with the tensor itself where there is none.

    What is visible as causal, a span of keys a query, the same keys for all queries, or both of
    these, becomes `causal`, `spans` and `keys`; the result is held against the tensor everywhere.
    A mask of 0 and one large negative number is treated as boolean. Tensors on other devices than
    the CPU are kept, since to look at them would mean to wait.

    Args:
        tensor: Boolean, or added to the scores; 1 to 4 axes.
        causal: Beside the tensor, as in `Mask`.
    Raises:
        ShapeError: Another number of axes, or not of these types.
    """
    if not 1 <= tensor.ndim <= 4 or tensor.numel() == 0:
        raise ShapeError(
            f"a mask has shape {tuple(tensor.shape)}; expected 1 to 4 axes, none empty, that "
            f"broadcast to (batch, head, query, key)"
        )
    with unobserved(tensor.device.type):
        tensor = _narrow(tensor.detach()[(None,) * (4 - tensor.ndim)])
        if tensor.device.type != "cpu":
            return _by_reference(tensor, causal)
        return _remembered(tensor, causal)


def _narrow(tensor: Tensor) -> Tensor:
    """Return a mask without the axes along which it is expanded."""
    for axis in range(3):
        if tensor.stride(axis) == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _by_reference(tensor: Tensor, causal: int | None) -> Mask:
    if tensor.is_floating_point():
        return Mask(causal=causal, bias=tensor)
    if tensor.dtype == torch.bool and tensor.shape[1] == tensor.shape[2] == 1:
        return Mask(causal=causal, keys=tensor)
    return Mask(causal=causal, visible=tensor)


def _remembered(tensor: Tensor, causal: int | None) -> Mask:
    """Compact a mask, or return what came of the same one before."""
    if tensor.is_inference():  # writing to it would not show
        return _compact(tensor, causal)
    storage = StorageWeakRef(tensor.untyped_storage())
    place = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    key = (storage.cdata, *place, causal)
    with _lock:
        known = _memory.get(key)
    if known and not known.storage.expired() and known.version == tensor._version:
        return known.mask or _by_reference(tensor, causal)
    version = tensor._version
    mask = _compact(tensor, causal)
    kept = mask.visible is not None or mask.bias is not None
    with _lock:
        _memory[key] = _Remembered(storage, version, None if kept else mask)
        while len(_memory) > _REMEMBERED:
            _memory.popitem(last=False)
    return mask


def _compact(tensor: Tensor, causal: int | None) -> Mask:
    hidden = _hidden_value(tensor)
    if hidden is None:
        return _by_reference(tensor, causal)
    if hidden == 0:
        return Mask(causal=causal)
    keys = _any_query(tensor)
    mask = _keys_only(tensor, keys) or _spans(tensor, keys)
    if hidden > _ABSORBS:  # then a row that sees no key is not even, but has the scores' weights
        if causal is not None or _hides_rows(tensor):
            return _by_reference(tensor, causal)
        hidden = -math.inf
    if mask is None:
        return _by_reference(tensor, causal)
    if causal is not None and mask.causal is not None:
        causal = min(causal, mask.causal)
    return replace(mask, causal=mask.causal if causal is None else causal, hidden=hidden)


def _hidden_value(tensor: Tensor) -> float | None:
    """Return what stands for hidden keys; 0 if none is hidden, None if there are other values."""
    if tensor.dtype == torch.bool:
        return -math.inf
    if not tensor.is_floating_point():
        raise ShapeError(f"a mask is of type {tensor.dtype}; expected bool or floating point")
    low, high = (float(value) for value in torch.aminmax(tensor))
    if low == high == 0:
        return 0.0
    if not low <= _LARGE or high not in (0, low):
        return None
    for _, block in _blocks(tensor):
        if not ((block == 0) | (block == low)).numpy().all():
            return None
    return low


def _booleans(tensor: Tensor) -> Iterator[tuple[_Place, Booleans]]:
    """Yield places and what is visible, shape `(query, key)`; numpy goes through it much faster."""
    for place, block in _blocks(tensor):
        yield place, (block if block.dtype == torch.bool else block == 0).numpy()


def _any_query(tensor: Tensor) -> Tensor:
    """Return which keys any query of an item sees, shape `(batch, 1, 1, key)`."""
    batch, _, _, keys = tensor.shape
    result = np.zeros((batch, 1, 1, keys), dtype=bool)
    for (item, _, _), block in _booleans(tensor):
        result[item, 0, 0] |= block.any(0)
    return torch.from_numpy(result)


def _hides_rows(tensor: Tensor) -> bool:
    """Return whether a query sees no key."""
    return any(not block.any(-1).all() for _, block in _booleans(tensor))


def _blocks(tensor: Tensor) -> Iterator[tuple[_Place, Tensor]]:
    batch, heads, queries, keys = tensor.shape
    step = max(1, _BLOCK_BYTES // keys)
    for item in range(batch):
        for head in range(heads):
            for start in range(0, queries, step):
                part = slice(start, min(start + step, queries))
                yield (item, head, part), tensor[item, head, part]


def _keys_only(tensor: Tensor, keys: Tensor) -> Mask | None:
    """Return the mask as keys alone, if all queries see the same."""
    every = keys.numpy()[:, 0]
    if any(not (block == every[place[0]]).all() for place, block in _booleans(tensor)):
        return None
    return Mask() if bool(keys.all()) else Mask(keys=keys)


def _spans(tensor: Tensor, keys: Tensor) -> Mask | None:
    """Return the mask as spans, or as causal, and keys, if these give it back exactly."""
    first = torch.zeros(tensor.shape[:3], dtype=torch.int32, device="cpu")
    last = torch.full_like(first, -1)
    place_of = np.arange(keys.shape[3], dtype=np.int32)
    for (item, head, part), block in _booleans(tensor):
        start, stop = _ends(block)
        rebuilt = place_of >= start[:, None]
        rebuilt &= place_of <= stop[:, None]
        rebuilt &= keys.numpy()[item, 0]
        if not np.array_equal(rebuilt, block):
            return None
        first[item, head, part], last[item, head, part] = map(torch.from_numpy, (start, stop))
    return _simplest(first, last, keys)


def _ends(block: Booleans) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the first and last visible key of each row; 0 and -1 where there is none."""
    from_end = torch.from_numpy(block).flip(-1).numpy().argmax(-1)
    last = np.where(block.any(-1), block.shape[-1] - 1 - from_end, -1)
    return block.argmax(-1).astype(np.int32), last.astype(np.int32)


def _simplest(first: Tensor, last: Tensor, keys: Tensor) -> Mask:
    """Return spans of `(batch, head, query)` and keys in as few parts as will do."""
    kept = None if bool(keys.all()) else keys
    counts = torch.nn.functional.pad(keys[:, 0].long().cumsum(-1), (1, 0))  # visible before a key
    counts = counts.expand(-1, first.shape[1], -1)
    inside = _between(counts, first.long(), last.long())
    seen = last >= first
    place = torch.arange(first.shape[2], dtype=torch.int64, device="cpu")
    if bool(seen.any()):
        offset = int((last.long() - place)[seen].max())
        until = (place + offset).clamp(-1, keys.shape[3] - 1).expand_as(first)
        if bool((_between(counts, torch.zeros_like(until), until) == inside).all()):
            return Mask(causal=offset, keys=kept)
    if bool((inside == (last - first + 1).clamp(min=0)).all()):
        kept = None
    return Mask(spans=_shared(first, last), keys=kept)


def _between(counts: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return how many visible keys there are from first to last."""
    return counts.gather(-1, last + 1) - counts.gather(-1, torch.minimum(first, last + 1))


def _shared(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return spans without the heads, if these are all alike."""
    if bool((first == first[:, :1]).all()) and bool((last == last[:, :1]).all()):
        return first[:, :1].clone(), last[:, :1].clone()
    return first, last
