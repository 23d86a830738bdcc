"""How many bytes a capture holds, and how many it may."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from visualizer.errors import OutOfRangeError

__all__ = ["Budget", "in_words", "storages"]


class HoldsTensors(Protocol):
    """Something that keeps tensors."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return them."""
        ...


class Budget:
    """The bytes of everything that a capture holds; memory that is shared counts once.

    Args:
        max_bytes: How many there may be; None is no limit.
    Raises:
        OutOfRangeError: The limit is not a positive number.
    """

    def __init__(self, max_bytes: int | None) -> None:
        is_number = isinstance(max_bytes, int | float) and not isinstance(max_bytes, bool)
        if max_bytes is not None and not (is_number and max_bytes > 0):
            raise OutOfRangeError(
                f"max_bytes is {max_bytes!r}; expected a positive number of bytes, such as "
                f"2 * 2**30 for 2 GiB, or None for no limit"
            )
        self.max_bytes = max_bytes
        self._values = 0
        self._records: dict[int, tuple[HoldsTensors, dict[int, int], int]] = {}
        self._storages: dict[int, tuple[int, int]] = {}  # by address: bytes, holders
        self._held = 0
        self._lock = threading.RLock()

    @property
    def used(self) -> int:
        """How many bytes are held."""
        with self._lock:
            records = [record for record, _, _ in self._records.values()]
        return self._values + sum(
            storages(tensor for record in records for tensor in record.tensors()).values()
        )

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes more are allowed."""
        return self.max_bytes is None or self._values + self._held + size <= self.max_bytes

    def add_bytes(self, count: int) -> None:
        """Count the bytes of a copied value."""
        with self._lock:
            self._values += count

    def drop_bytes(self, count: int) -> None:
        """Count them no more."""
        with self._lock:
            self._values -= count

    def new_bytes(self, tensors: Iterable[Tensor]) -> int:
        """Return how many bytes tensors would add."""
        found = storages(tensors)
        return sum(size for place, size in found.items() if place not in self._storages)

    def own_bytes(self, record: HoldsTensors) -> int:
        """Return how many bytes would be free without a record."""
        _, held, expected = self._records[id(record)]
        own = sum(size for place, size in held.items() if self._storages[place][1] == 1)
        return own + expected

    def add_record(self, record: HoldsTensors, expected: int = 0) -> None:
        """Count what an attention record keeps.

        Args:
            record: It.
            expected: Bytes that it will keep later.
        """
        with self._lock:
            held = storages(record.tensors())
            self._records[id(record)] = record, held, expected
            self._held += expected
            for place, size in held.items():
                size, holders = self._storages.get(place, (size, 0))
                self._storages[place] = size, holders + 1
                self._held += 0 if holders else size

    def drop_record(self, record: HoldsTensors) -> None:
        """Count it no more."""
        with self._lock:
            _, held, expected = self._records.pop(id(record))
            self._held -= expected
            for place in held:
                size, holders = self._storages[place]
                if holders > 1:
                    self._storages[place] = size, holders - 1
                else:
                    del self._storages[place]
                    self._held -= size


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return the bytes of the storages of tensors, by address."""
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
