"""A model whose modules have paths, and whose forwards are counted."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

from visualizer._block.wrappers import Spot, innermost, is_replica, spots
from visualizer._intercept.frames import find_call, number_of
from visualizer._intercept.observers import Inlined

__all__ = ["Root", "identity"]


def identity(module: nn.Module) -> int:
    """Return a number that tells modules apart, but not the replicas of DataParallel.

    They share the dict of hooks with the module that they are made from.
    """
    return id(_hooks(module))


def _hooks(module: nn.Module) -> Any:
    return vars(module).get("_forward_pre_hooks", module)


_spots: weakref.WeakKeyDictionary[nn.Module, dict[int, Spot]] = weakref.WeakKeyDictionary()
"""Where the modules of models are, by identity; what is found here is checked before it is used."""


def _find_spots(model: nn.Module) -> dict[int, Spot]:
    found = {identity(module): spot for spot, module in spots(model)}
    _spots[model] = found
    return found


def _is_at(model: nn.Module, raw: str, place: int) -> bool:
    """Tell whether a module is still where it was."""
    module: Any = model
    for part in raw.split(".") if raw else ():
        module = module._modules.get(part)
        if module is None:
            return False
    return identity(module) == place


class _Forward(NamedTuple):
    """A forward that runs; of a wrapper, if `is_wrapped`: then what it wraps runs within it."""

    place: int
    step: int
    is_wrapped: bool


class _Met(NamedTuple):
    """A forward that nobody told of: the number of torch's own call."""

    thread: int
    number: int
    step: int


class _Running(threading.local):
    """What this thread is in.

    Attributes:
        forwards: Those of the root, the innermost last.
        inlined: The last one that a graph had within it: the number of the call, and the step.
        spots: The attention calls of that.
    """

    def __init__(self) -> None:
        self.forwards: list[_Forward] = []
        self.inlined: tuple[int, int] | None = None
        self.spots: set[int] = set()


class Root:
    """A model whose modules have paths.

    Args:
        model: It, without what is wrapped around it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.place = identity(model)
        self._model = weakref.ref(model)
        hooks = _hooks(model)
        self._anchor = weakref.ref(hooks if isinstance(hooks, OrderedDict) else model)
        self._spots = _spots.get(model) or _find_spots(model)
        self._is_fresh = False
        self._counter = itertools.count()
        self._running = _Running()
        self._replicated = 0
        self._last: int | None = None
        self._met: _Met | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the model or a replica is still there: another may be where it was."""
        return self._model() is not None or self._anchor() is not None

    def path_of(self, place: int) -> str | None:
        """Return the path of a module; None where it is none of the model's."""
        if not self.is_alive:
            return None
        spot, model = self._spots.get(place), self._model()
        if model is None or (spot is not None and _is_at(model, spot.raw, place)):
            return None if spot is None else spot.path
        if spot is not None or not self._is_fresh:  # modules were replaced, perhaps
            self._spots, self._is_fresh = _find_spots(model), True
            spot = self._spots.get(place)
        return None if spot is None else spot.path

    def begin(self, module: nn.Module) -> bool:
        """Note that a module is called; return whether a forward of the model begins with that."""
        inner, forwards = innermost(module), self._running.forwards
        if not self._is_model(inner):
            return False
        if not forwards and self._replicated and is_replica(module):
            return False  # a part of the forward that began in another thread
        is_part = bool(forwards) and forwards[-1].is_wrapped
        if is_part:
            step = forwards[-1].step
        else:
            step = self._last = next(self._counter)
            self._is_fresh = False
        forwards.append(_Forward(identity(module), step, module is not inner))
        self._replicated += isinstance(module, nn.DataParallel)
        return not is_part

    def end(self, module: nn.Module) -> None:
        """Note that a module has returned, or that an exception has left it."""
        forwards = self._running.forwards
        if forwards and forwards[-1].place == identity(module):
            forwards.pop()
            self._replicated -= isinstance(module, nn.DataParallel)
            if not forwards:
                self._last = None

    def step(self, frame: FrameType | None = None, inlined: Inlined | None = None) -> int | None:
        """Return the forward that this thread is in, or another, that may have made the thread.

        Args:
            frame: What this thread runs; to find a forward that nobody was told of, since it runs
                already, or by a `__call__` that was looked up before the block was opened.
            inlined: The attention call, if a graph makes it.
        """
        forwards = self._running.forwards
        if forwards:
            return forwards[-1].step
        if inlined is not None:
            for module, call in inlined.calls:
                if identity(module) == self.place:
                    return self._step_of(call, inlined.spot)
        if frame is not None:
            self._meet(frame)
        return self._last

    def _meet(self, frame: FrameType) -> None:
        """Count a forward whose begin and end are not told."""
        call, met, here = find_call(frame, self._is_called), self._met, threading.get_ident()
        if call is not None:
            number = number_of(call)
            if met is None or (met.thread, met.number) != (here, number):
                met = self._met = _Met(here, number, next(self._counter))
                self._is_fresh = False
            self._last = met.step
        elif met is not None and met.thread == here:
            self._last = self._met = None  # that forward is over

    def _is_called(self, module: nn.Module) -> bool:
        return self._is_model(innermost(module)) and not is_replica(module)

    def _is_model(self, inner: nn.Module) -> bool:
        return inner is self._model() or (identity(inner) == self.place and self.is_alive)

    def _step_of(self, call: int, spot: int) -> int:
        """Return the forward that a graph has within it; another one when it runs again."""
        running = self._running
        if running.inlined is None or running.inlined[0] != call or spot in running.spots:
            running.inlined, running.spots = (call, next(self._counter)), set()
            self._is_fresh = False
        running.spots.add(spot)
        return running.inlined[1]
