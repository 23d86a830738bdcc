"""A value in memory, and whether anybody has it who could change it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from visualizer._capture.device_copies import copies
from visualizer._capture.snapshot import widen

__all__ = ["Kept"]


class Kept:
    """Holds a value that was copied, and hands it out.

    Who wants to write it later need not copy it again: as long as nobody has been given the value,
    nobody can change it.

    Args:
        value: It, as `snapshot_narrow` returned it.
        is_narrow: Whether something in it is still to be widened.
    """

    __slots__ = ("_is_narrow", "_value", "_waiting", "was_read")

    def __init__(self, value: Any, is_narrow: bool = False) -> None:
        self._value, self._is_narrow = value, is_narrow
        self._waiting: list[Callable[[], None]] = []
        self.was_read = False

    def peek(self) -> Any:
        """Return the value to who does not change it, once its copies from a GPU are there.

        Tensors of bfloat16 and float8 in it may be `Narrow`.
        """
        copies.wait()
        return self._value

    def __call__(self) -> Any:
        """Return the value to who may change it."""
        if not self.was_read:
            with _lock:
                self.was_read = True
                waiting, self._waiting = self._waiting, []
            for tell in waiting:
                tell()
        value = self.peek()
        if self._is_narrow:
            with _widening:
                if self._is_narrow:
                    self._value = widen(self._value)
                    self._is_narrow = False
                value = self._value
        return value

    def before_read(self, tell: Callable[[], None]) -> bool:
        """Have a function called before the value is first handed out; False if it was already."""
        with _lock:
            if not self.was_read:
                self._waiting.append(tell)
            return not self.was_read


_lock, _widening = threading.Lock(), threading.Lock()
"""One for all of each: they are held for a moment only."""
