"""Who is told of what runs: the open captures, each of its own context."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from visualizer.attention.unobserved import is_unobserved

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from torch import Tensor

    from visualizer._intercept.observation import Observation

__all__ = [
    "AttentionObserver",
    "Inlined",
    "Observer",
    "Sighting",
    "call_inside",
    "count_told",
    "depth",
    "find_observers",
    "open_observer",
    "shut_observer",
]


class Inlined(NamedTuple):
    """A call in a graph that has the calls of modules within it, which nobody is told of.

    Attributes:
        spot: Which attention call of which graph.
        calls: The modules that are called, and which call each is, by number.
    """

    spot: int
    calls: list[tuple[Any, int]]


class Sighting:
    """An attention call that has returned, before anybody looks closer.

    Args:
        look: Makes an observation of the call, given `args` and `kwargs`.
        args: Positional arguments.
        kwargs: Keyword arguments.
        tensors: Query, key, value and output, if these and `parts` are all that it looks at.
        parts: Mask, bias and the like.
        module: The module that attends, where the program says so.

    Attributes:
        inlined: Where in which graph, if a graph makes the call.
        is_borrowed: Its `tensors` are good for this moment only: a compiled graph's own memory.
    """

    __slots__ = (
        "_args",
        "_kwargs",
        "_look",
        "inlined",
        "is_borrowed",
        "module",
        "parts",
        "tensors",
    )

    def __init__(
        self,
        look: Callable[..., Observation],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: Sequence[Tensor | None] = (),
        parts: Sequence[Tensor | None] = (),
        module: Any = None,
    ) -> None:
        self._look, self._args, self._kwargs = look, args, kwargs
        self.tensors, self.parts, self.module = tensors, parts, module
        self.inlined: Inlined | None = None
        self.is_borrowed = False

    def look(self) -> Observation:
        """Return what was seen."""
        observation = self._look(*self._args, **self._kwargs)
        observation.is_borrowed = self.is_borrowed
        return observation

    @property
    def kind(self) -> Hashable:
        """What calls have in common that are rebuilt alike; None if that can't be told."""
        query, key = self.tensors[:2] if len(self.tensors) > 1 else (None, None)
        if query is None or key is None:
            return None
        shapes = [None if part is None else part.shape for part in self.parts]
        cls = type(self.module)
        module = cls.__module__, cls.__qualname__
        return (self._look, module, query.shape, key.shape, query.dtype, query.device, *shapes)


class AttentionObserver(Protocol):
    """What is told of attention."""

    def on_attention(self, sighting: Sighting) -> None:
        """An attention call has returned."""

    def on_recomputed(self, sighting: Sighting) -> None:
        """A call has returned that autograd makes a second time, in a backward pass."""

    def on_error(self, error: Exception) -> None:
        """Telling it raised."""


class Observer(Protocol):
    """What is told of modules that are called, and has somebody told of attention.

    Attributes:
        is_open: Whether it still wants to be told.
        attention: Who is told of attention; None if nobody.
    """

    is_open: bool
    attention: Any

    def on_call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is about to be called."""

    def on_return(self, module: Any, output: Any) -> None:
        """A module has returned."""

    def on_raise(self, module: Any) -> None:
        """An exception has left a module."""

    def on_error(self, error: Exception) -> None:
        """Telling it raised."""


class _Slot:
    """An observer's place in a context, which a task that goes on may keep long after the block."""

    __slots__ = ("observer", "thread")

    def __init__(self, observer: Observer) -> None:
        self.observer: Observer | None = observer
        self.thread = threading.get_ident()


_own: ContextVar[tuple[_Slot, ...]] = ContextVar("visualizer_observers", default=())
_open: list[_Slot] = []
_lock = threading.RLock()


def open_observer(observer: Observer) -> None:
    """Tell an observer of what happens in this context, and in threads that have none."""
    slot = _Slot(observer)
    with _lock:
        observer.is_open = True
        _open.append(slot)
    _own.set((*(each for each in _own.get() if each.observer is not None), slot))


def shut_observer(observer: Observer) -> None:
    """Tell it no more, from whichever context this is called."""
    with _lock:
        observer.is_open = False
        for slot in [slot for slot in _open if slot.observer is observer]:
            slot.observer = None
            _open.remove(slot)
    _own.set(tuple(each for each in _own.get() if each.observer is not None))


def find_observers() -> tuple[Observer, ...]:
    """Return who is to be told of what this thread does now.

    The observers of its context; in a thread that has none, such as those of DataParallel, all that
    other threads have opened.
    """
    if not _open or is_unobserved():
        return ()
    own = [slot.observer for slot in _own.get() if slot.observer is not None]
    if own:
        return tuple(own)
    here = threading.get_ident()
    others = [slot.observer for slot in _open if slot.thread != here]
    return tuple(observer for observer in others if observer is not None)


class _Depth(threading.local):
    """What this thread is in.

    Attributes:
        inside: How many attention functions run that are observed as a whole: what these call is
            a part of them. Who runs one counts up and down.
        told: How many attention calls observers were told of.
    """

    inside = 0
    told = 0


depth = _Depth()


def call_inside(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that is observed as a whole."""
    depth.inside += 1
    try:
        return function(*args, **kwargs)
    finally:
        depth.inside -= 1


def count_told() -> int:
    """Return of how many attention calls of this thread observers were told."""
    return depth.told
