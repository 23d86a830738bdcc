"""Which module of which model a call belongs to, and in which forward."""

from __future__ import annotations

import itertools
import threading
import weakref
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

from visualizer._intercept.calls import unwatch_calls, watch_calls
from visualizer._intercept.frames import modules_on_stack

__all__ = ["Place", "Places", "identity"]


class Place(NamedTuple):
    """Where something happened.

    Attributes:
        module_path: "" is the model itself; None is outside of any module.
        step: Which forward of the model; None outside of one.
        root: Which of the models that were met.
    """

    module_path: str | None
    step: int | None
    root: int = 0


def identity(module: nn.Module) -> int:
    """Return a number that tells modules apart, but not the replicas of DataParallel.

    They share the dict of hooks with the module that they are made from.
    """
    return id(vars(module).get("_forward_pre_hooks", module))


_paths: weakref.WeakKeyDictionary[nn.Module, dict[int, str]] = weakref.WeakKeyDictionary()
"""Paths of the modules of models, by identity; what is found here is checked before it is used."""


def _paths_of(model: nn.Module) -> dict[int, str]:
    paths = {identity(module): path for path, module in model.named_modules()}
    _paths[model] = paths
    return paths


def _is_at(model: nn.Module, path: str, place: int) -> bool:
    """Tell whether a module is still where it was."""
    module: Any = model
    for part in path.split(".") if path else ():
        module = module._modules.get(part)
        if module is None:
            return False
    return identity(module) == place


class _Running(threading.local):
    """The forwards of a root that this thread is in, the innermost last."""

    def __init__(self) -> None:
        self.steps: list[int] = []


@dataclass(slots=True, eq=False)
class _Root:
    """A model whose modules have paths."""

    model: weakref.ref[nn.Module]
    place: int
    paths: dict[int, str]
    counter: Any = field(default_factory=itertools.count)
    running: _Running = field(default_factory=_Running)
    last: int | None = None
    is_fresh: bool = False

    def path_of(self, place: int) -> str | None:
        """Return the path of a module; None where it is none of the model's."""
        path, model = self.paths.get(place), self.model()
        if model is None or (path is not None and _is_at(model, path, place)):
            return path
        if path is not None or not self.is_fresh:  # modules were replaced, perhaps
            self.paths, self.is_fresh = _paths_of(model), True
        return self.paths.get(place)

    def begin(self) -> None:
        self.last = next(self.counter)
        self.running.steps.append(self.last)

    def end(self) -> None:
        if self.running.steps:
            self.running.steps.pop()
        if not self.running.steps:
            self.last = None

    def step(self) -> int | None:
        """Return the forward that this thread is in, or another, that may have made the thread."""
        steps = self.running.steps
        return steps[-1] if steps else self.last


class Places:
    """The models of one capture: the one that was given, or those that are met.

    Args:
        model: The one whose calls count; None for all.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._is_given = model is not None
        self._roots: list[_Root] = []
        self._watched: list[type] = []
        self._lock = threading.RLock()
        if model is not None:
            self._add(model)

    def paths(self) -> dict[str, nn.Module]:
        """Return the modules of the model that was given, by path."""
        return {} if self._model is None else dict(self._model.named_modules())

    def watch(self) -> None:
        """Begin to count the forwards of the model that was given."""
        if self._model is not None:
            self._watch(type(self._model))

    def release(self) -> list[str]:
        """Stop counting, and let go of the model; the paths stay. Return what went wrong."""
        self._model = None
        released = [unwatch_calls(self._watched.pop()) for _ in range(len(self._watched))]
        return [trouble for trouble in released if trouble is not None]

    def step(self) -> int | None:
        """Return which forward runs of the model that was given."""
        return self._roots[0].step() if self._is_given else None

    @property
    def is_given(self) -> bool:
        """Whether there is a model whose calls alone count."""
        return self._is_given

    def on_call(self, module: nn.Module) -> None:
        """Count, if it is a root that is called."""
        for root in self._roots:
            if root.place == identity(module):
                root.begin()

    def on_end(self, module: nn.Module) -> None:
        """Note that a module has returned, or that an exception has left it."""
        for root in self._roots:
            if root.place == identity(module):
                root.end()

    def find(self, frame: FrameType | None, module: nn.Module | None = None) -> Place | None:
        """Return where a call comes from; None where it is not the model's that was given.

        Args:
            frame: Where the call was made.
            module: The module, if the program says which.
        """
        met = itertools.chain(() if module is None else (module,), modules_on_stack(frame))
        if self._is_given:
            return next(filter(None, map(self._place, met)), None)
        stack = list(met)
        if not stack:
            return Place(None, None)
        with self._lock:
            root = self._root_of(stack[-1])
        for found in stack:
            path = root.path_of(identity(found))
            if path is not None:
                return Place(path, root.step(), self._roots.index(root))
        return Place(None, None)

    def _place(self, module: nn.Module) -> Place | None:
        root = self._roots[0]
        path = root.path_of(identity(module))
        return None if path is None else Place(path, root.step())

    def _root_of(self, outermost: nn.Module) -> _Root:
        """Return the model that an outermost module is, or is a part of; a new one if need be."""
        place = identity(outermost)
        for root in self._roots:
            if root.place == place:
                return root
        for root in self._roots:
            if root.path_of(place) is not None:
                return root
        root = self._add(outermost)
        root.last = next(root.counter)  # it runs already
        self._watch(type(outermost))
        return root

    def _add(self, model: nn.Module) -> _Root:
        paths = _paths.get(model) or _paths_of(model)
        root = _Root(weakref.ref(model), identity(model), paths)
        self._roots.append(root)
        return root

    def _watch(self, cls: type) -> None:
        watch_calls(cls)
        self._watched.append(cls)
