"""Who is told of what runs: the open captures, each of its own context."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from visualizer.attention.unobserved import is_unobserved

if TYPE_CHECKING:
    from visualizer._intercept.observation import Observation

__all__ = [
    "Observer",
    "count_told",
    "find_observers",
    "inside",
    "is_inside",
    "note_told",
    "open_observer",
    "shut_observer",
]


class Observer(Protocol):
    """What is told of attention, and of modules that are called.

    Attributes:
        is_open: Whether it still wants to be told.
    """

    is_open: bool

    def on_attention(self, observation: Observation) -> None:
        """An attention call has returned."""

    def on_call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is about to be called. Does not raise."""

    def on_return(self, module: Any, output: Any) -> None:
        """A module has returned. Does not raise."""

    def on_error(self, error: Exception) -> None:
        """Telling it raised."""


_own: ContextVar[tuple[Observer, ...]] = ContextVar("visualizer_observers", default=())
_open: list[Observer] = []
_lock = threading.RLock()


def open_observer(observer: Observer) -> None:
    """Tell an observer of what happens in this context, and in threads that have none."""
    with _lock:
        observer.is_open = True
        _open.append(observer)
    _own.set((*_live(), observer))


def shut_observer(observer: Observer) -> None:
    """Tell it no more, from whichever context this is called."""
    with _lock:
        observer.is_open = False
        if observer in _open:
            _open.remove(observer)
    if observer in _own.get():
        _own.set(_live())


def find_observers() -> tuple[Observer, ...]:
    """Return who is to be told of what this thread does now."""
    if not _open or is_unobserved():
        return ()
    return _live() or tuple(_open)


def _live() -> tuple[Observer, ...]:
    return tuple(observer for observer in _own.get() if observer.is_open)


class _Depth(threading.local):
    inside = 0
    told = 0


_depth = _Depth()


@contextmanager
def inside() -> Iterator[None]:
    """Run an attention function that is observed as a whole: what it calls is a part of it."""
    _depth.inside += 1
    try:
        yield
    finally:
        _depth.inside -= 1


def is_inside() -> bool:
    """Tell whether this thread runs an attention function that is observed as a whole."""
    return _depth.inside > 0


def note_told() -> None:
    """Note that observers were told of an attention call of this thread."""
    _depth.told += 1


def count_told() -> int:
    """Return of how many attention calls of this thread observers were told."""
    return _depth.told
