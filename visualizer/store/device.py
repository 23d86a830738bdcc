"""Copies from a GPU that the model does not wait for.

A copy goes into pinned memory, on a stream of its own, which waits for the work that the model has
queued so far; the writer waits for the copy. Pinned memory is used again once it was written, and
bounded: beyond the bound copies go into ordinary memory, and are waited for.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

import torch
from torch import Tensor

from visualizer.store.pieces import Piece

__all__ = ["Moment", "PinnedPool", "begin_after", "dtype_name", "moment", "piece_of", "pool"]


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return torch's name of a type: "float32"."""
    return str(dtype).removeprefix("torch.")


def piece_of(tensor: Tensor) -> Piece:
    """Return the memory of a contiguous tensor, or of its copy if that is on a GPU."""
    if tensor.is_cuda:
        return pool.copy(tensor)
    return _piece(tensor if tensor.device.type == "cpu" else tensor.cpu())


def _piece(tensor: Tensor) -> Piece:
    shape = tuple(tensor.shape)
    return Piece(dtype_name(tensor.dtype), shape, tensor, tensor.data_ptr(), tensor.nbytes)


class PinnedPool:
    """Pinned memory, which copies from a GPU are made into.

    Args:
        max_bytes: How much there may be.
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._free: dict[int, list[Tensor]] = {}
        self._bytes = self._used = 0
        self._lock = threading.Lock()
        self._streams: dict[int, Any] = {}

    def copy(self, tensor: Tensor) -> Piece:
        """Return a copy of a CUDA tensor's present value, which is there once `wait` returned."""
        staged = self._take(tensor.nbytes)
        if staged is None:
            return _piece(tensor.cpu())
        device = tensor.get_device()
        stream = self._stream(device)
        made, done = torch.cuda.Event(), torch.cuda.Event()
        made.record(torch.cuda.current_stream(device))
        version = None if tensor.is_inference() else tensor._version
        view = staged[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        with torch.cuda.stream(stream):
            stream.wait_event(made)
            view.copy_(tensor, non_blocking=True)
            done.record(stream)
        source: list[Tensor] = [tensor]  # which keeps its memory from being used again

        def wait() -> bool:
            done.synchronize()
            intact = all(version is None or each._version == version for each in source)
            source.clear()
            return intact

        dtype = dtype_name(tensor.dtype)
        shape, address = tuple(tensor.shape), staged.data_ptr()
        return Piece(dtype, shape, staged, address, tensor.nbytes, wait, lambda: self._give(staged))

    def _stream(self, device: int) -> Any:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]

    def _take(self, size: int) -> Tensor | None:
        """Return pinned memory of at least so many bytes; None if there is too much of it."""
        size = 1 << max(12, (size - 1).bit_length())
        with self._lock:
            if self._used + size > self._max_bytes:
                return None
            self._used += size
            if self._free.get(size):
                return self._free[size].pop()
            if self._bytes + size > self._max_bytes:
                self._free.clear()
                self._bytes = self._used - size
            self._bytes += size
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def _give(self, staged: Tensor) -> None:
        with self._lock:
            self._used -= staged.nbytes
            self._free.setdefault(staged.nbytes, []).append(staged)

    def forget(self) -> None:
        """Give up everything: a forked process can't use its parent's GPU."""
        self.__init__(self._max_bytes)  # type: ignore[misc]


pool = PinnedPool()

Moment = dict[int, Any]
"""By GPU, an event behind all that the model had queued there."""


def moment() -> Moment:
    """Return where the queues end at this moment, of the GPUs that hold something."""
    events: Moment = {}
    if torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(device):  # no other gets a context for our sake
                events[device] = torch.cuda.Event()
                events[device].record(torch.cuda.current_stream(device))
    return events


def begin_after(events: Moment) -> None:
    """Let what this thread does on a GPU begin behind a moment."""
    for device, event in events.items():
        torch.cuda.current_stream(device).wait_event(event)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.forget)
