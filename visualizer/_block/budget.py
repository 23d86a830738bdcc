"""How many bytes a capture holds, and how many it may."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from torch import Tensor

from visualizer._capture.snapshot import nbytes
from visualizer.errors import OutOfRangeError

__all__ = ["Budget", "in_words"]


class Budget:
    """The bytes of everything that a capture holds; memory that is shared counts once.

    Args:
        max_bytes: How many there may be; None is no limit.
    Raises:
        OutOfRangeError: The limit is not a positive number.
    """

    def __init__(self, max_bytes: int | None) -> None:
        if max_bytes is not None and (isinstance(max_bytes, bool) or not max_bytes > 0):
            raise OutOfRangeError(
                f"max_bytes is {max_bytes!r}; expected a positive number of bytes, such as "
                f"2 * 2**30 for 2 GiB, or None for no limit"
            )
        self.max_bytes = max_bytes
        self.used = 0
        self._storages: dict[int, tuple[int, int]] = {}  # address: bytes, holders
        self._lock = threading.Lock()

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes more are allowed."""
        return self.max_bytes is None or self.used + size <= self.max_bytes

    def add_value(self, value: object) -> None:
        """Count a copied value."""
        with self._lock:
            self.used += nbytes(value)

    def drop_value(self, value: object) -> None:
        """Count a copied value no more."""
        with self._lock:
            self.used -= nbytes(value)

    def new_bytes(self, tensors: Iterable[Tensor]) -> int:
        """Return how many bytes tensors would add."""
        return sum(
            size for place, size in _storages(tensors).items() if place not in self._storages
        )

    def add_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors' storages."""
        with self._lock:
            for place, size in _storages(tensors).items():
                _, holders = self._storages.get(place, (size, 0))
                self.used += 0 if holders else size
                self._storages[place] = size, holders + 1

    def drop_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Count them no more."""
        with self._lock:
            for place in _storages(tensors):
                size, holders = self._storages.get(place, (0, 0))
                if holders == 1:
                    del self._storages[place]
                    self.used -= size
                elif holders:
                    self._storages[place] = size, holders - 1


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return found


def in_words(count: float) -> str:
    """Return a number of bytes as people say it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
