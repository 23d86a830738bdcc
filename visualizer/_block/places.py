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
    """

    module_path: str | None
    step: int | None


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


class _Steps(threading.local):
    now: int | None = None


@dataclass(slots=True, eq=False)
class _Root:
    """A model whose modules have paths."""

    model: weakref.ref[nn.Module]
    place: int
    paths: dict[int, str]
    counter: Any = field(default_factory=itertools.count)
    last: int | None = None
    steps: _Steps = field(default_factory=_Steps)

    def path_of(self, place: int) -> str | None:
        """Return the path of a module; None where it is none of the model's."""
        path, model = self.paths.get(place), self.model()
        if path is not None and model is not None and not _is_at(model, path, place):
            self.paths = _paths_of(model)
            path = self.paths.get(place)
        return path

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

    def release(self) -> None:
        """Stop counting, and let go of the model; the paths stay."""
        self._model = None
        while self._watched:
            unwatch_calls(self._watched.pop())

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
            self._watch(type(outermost))
        return self.find(frame, module)

    def _place(self, module: nn.Module) -> Place | None:
        place = identity(module)
        for root in self._roots:
            path = root.path_of(place)
            if path is not None:
                return Place(path, root.step())
        return None

    def _add(self, model: nn.Module) -> _Root:
        paths = _paths.get(model) or _paths_of(model)
        root = _Root(weakref.ref(model), identity(model), paths)
        self._roots.append(root)
        return root

    def _watch(self, cls: type) -> None:
        watch_calls(cls)
        self._watched.append(cls)
