"""Copies from a GPU that don't stop it.

A copy is queued behind the work that makes the value, into pinned memory, and moved on into an
ordinary array when somebody reads it. Pinned memory in flight is bounded: beyond the bound the
oldest copies are waited for, which are the ones most likely to be done.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from dataclasses import dataclass
from types import ModuleType
from typing import Any

__all__ = ["DeviceCopies", "copies"]


@dataclass(frozen=True, slots=True)
class _Copy:
    """One copy on its way: done once `event` is; then `staged` holds what goes into `array`."""

    event: Any
    staged: Any
    array: Any


class DeviceCopies:
    """The copies that are on their way.

    Args:
        max_bytes: How much pinned memory may be in use at once.
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._on_their_way: deque[_Copy] = deque()
        self._lock = threading.RLock()

    def fetch(self, torch: ModuleType, tensor: Any) -> Any:
        """Return an array that holds a CUDA tensor's present value once `wait` has returned."""
        staged, event = self._start(torch, tensor)
        array = sys.modules["numpy"].empty(tuple(tensor.shape), staged.numpy().dtype)
        with self._lock:
            self._on_their_way.append(_Copy(event, staged, array))
            self._bytes += array.nbytes
            while self._bytes > self._max_bytes:
                self._finish_oldest()
        return array

    def wait(self) -> None:
        """Wait until every array that was handed out holds its value."""
        if self._on_their_way:
            with self._lock:
                while self._on_their_way:
                    self._finish_oldest()

    def forget(self) -> None:
        """Give up what is on its way: a forked process can't use its parent's GPU."""
        self._lock = threading.RLock()
        self._on_their_way.clear()
        self._bytes = 0

    def _start(self, torch: ModuleType, tensor: Any) -> tuple[Any, Any]:
        staged = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        staged.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(tensor.device))
        return staged, event

    def _finish_oldest(self) -> None:
        copy = self._on_their_way[0]
        copy.event.synchronize()
        copy.array[...] = copy.staged.numpy()
        # Last: who finds nothing on its way need not wait. (Something that runs in between, a
        # finalizer, may have read and so finished it.)
        if self._on_their_way and self._on_their_way[0] is copy:
            self._on_their_way.popleft()
            self._bytes -= copy.array.nbytes


copies = DeviceCopies()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=copies.forget)
