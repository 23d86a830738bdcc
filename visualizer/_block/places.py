"""Which module of which model a call belongs to, and in which forward."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch import nn

from visualizer._intercept.calls import unwatch_calls, watch_calls
from visualizer._intercept.frames import modules_on_stack

__all__ = ["Place", "Places", "identity"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something happened.

    Attributes:
        module_path: "" is the model itself; None is outside of any module.
        step: Which forward of the model; None outside of one.
    """

    module_path: str | None
    step: int | None


def identity(module: nn.Module) -> int:
    """Return a number that tells modules apart, but not the replicas of DataParallel.

    They share the dict of hooks with the module that they are made from.
    """
    return id(vars(module).get("_forward_pre_hooks", module))


class _Steps(threading.local):
    now: int | None = None


@dataclass(slots=True, eq=False)
class _Root:
    """A model whose modules have paths."""

    model: nn.Module
    paths: dict[int, str]
    counter: Any = field(default_factory=itertools.count)
    last: int | None = None
    steps: _Steps = field(default_factory=_Steps)

    def begin(self) -> None:
        self.last = self.steps.now = next(self.counter)

    def step(self) -> int | None:
        return self.last if self.steps.now is None else self.steps.now


class Places:
    """The models of one capture: the one that was given, or those that are met.

    Args:
        model: The one whose calls count; None for all.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._is_given = model is not None
        self._roots: list[_Root] = []
        self._watched: list[type] = []
        self._lock = threading.RLock()
        if model is not None:
            self._add(model)

    def paths(self) -> dict[str, nn.Module]:
        """Return the modules of the model that was given, by path."""
        return dict(self._roots[0].model.named_modules()) if self._is_given else {}

    def watch(self) -> None:
        """Begin to count the forwards of the model that was given."""
        for root in self._roots:
            self._watch(root)

    def release(self) -> None:
        """Stop counting, and let go of the models."""
        while self._watched:
            unwatch_calls(self._watched.pop())
        self._roots.clear()

    def on_call(self, module: nn.Module) -> None:
        """Count, if it is a root that is called."""
        for root in self._roots:
            if identity(root.model) == identity(module):
                root.begin()

    def find(self, frame: FrameType | None, module: nn.Module | None = None) -> Place | None:
        """Return where a call comes from; None where it is not the model's that was given.

        Args:
            frame: Where the call was made.
            module: The module, if the program says which.
        """
        outermost = None
        met = itertools.chain(() if module is None else (module,), modules_on_stack(frame))
        for found in met:
            place = self._place(found)
            if place is not None:
                return place
            outermost = found
        if self._is_given:
            return None
        if outermost is None:
            return Place(None, None)
        with self._lock:
            root = self._add(outermost)
            root.begin()
            self._watch(root)
        return self.find(frame, module)

    def _place(self, module: nn.Module) -> Place | None:
        place = identity(module)
        for root in self._roots:
            path = root.paths.get(place)
            if path is not None:
                return Place(path, root.step())
        return None

    def _add(self, model: nn.Module) -> _Root:
        paths = {identity(module): path for path, module in model.named_modules()}
        root = _Root(model, paths)
        self._roots.append(root)
        return root

    def _watch(self, root: _Root) -> None:
        watch_calls(type(root.model))
        self._watched.append(type(root.model))
