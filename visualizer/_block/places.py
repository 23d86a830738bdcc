"""Which module of which model a call belongs to, and in which forward."""

from __future__ import annotations

import itertools
import sys
import threading
from types import FrameType
from typing import NamedTuple

from torch import nn

from visualizer._block.roots import Root, identity
from visualizer._block.wrappers import innermost, spots, wrappers_to_watch
from visualizer._intercept.calls import unwatch_calls, watch_calls
from visualizer._intercept.frames import modules_on_stack
from visualizer._intercept.observers import Inlined

__all__ = ["Place", "Places"]


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


class Places:
    """The models of one capture: the one that was given, or those that are met.

    What is wrapped around a model (for parallel training, by the compiler) is none of it: whether
    it or the model is given, and whichever is called, paths and steps are the same.

    Args:
        model: The one whose calls count; None for all.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = None if model is None else innermost(model)
        self._is_given = model is not None
        self._roots: list[Root] = []
        self._watched: dict[type, None] = {}
        self._lock = threading.RLock()
        if self._model is not None:
            self._roots.append(Root(self._model))

    def paths(self) -> dict[str, nn.Module]:
        """Return the modules of the model that was given, by path."""
        if self._model is None:
            return {}
        # What is within a wrapper comes last.
        return {spot.path: module for spot, module in spots(self._model)}

    def watch(self) -> None:
        """Begin to count the forwards of the model that was given."""
        self._watch(*wrappers_to_watch())
        if self._model is not None:
            self._watch(type(self._model))

    def release(self) -> list[str]:
        """Stop counting, and let go of the model; the paths stay. Return what went wrong."""
        self._model = None
        released = [unwatch_calls(self._watched.popitem()[0]) for _ in range(len(self._watched))]
        return [trouble for trouble in released if trouble is not None]

    def step(self, frame: FrameType | None) -> int | None:
        """Return which forward runs of the model that was given.

        Args:
            frame: What this thread runs.
        """
        return self._roots[0].step(frame) if self._is_given else None

    def path_of(self, place: int) -> str | None:
        """Return the path of a module of the model that was given, by its identity."""
        return self._roots[0].path_of(place) if self._is_given else None

    @property
    def is_given(self) -> bool:
        """Whether there is a model whose calls alone count."""
        return self._is_given

    def on_call(self, module: nn.Module) -> bool:
        """Count, if it is a root that is called; return whether that begins a forward."""
        if not self._is_given and isinstance(module, nn.DataParallel):
            self._meet_before_threads(module)
        begun = [root.begin(module) for root in self._roots]
        return any(begun)

    def on_end(self, module: nn.Module) -> None:
        """Note that a module has returned, or that an exception has left it."""
        for root in self._roots:
            root.end(module)

    def find(
        self,
        frame: FrameType | None,
        module: nn.Module | None = None,
        inlined: Inlined | None = None,
    ) -> Place | None:
        """Return where a call comes from; None where it is not the model's that was given.

        Args:
            frame: Where the call was made.
            module: The module, if the program says which.
            inlined: The attention call, if a graph makes it.
        """
        met = itertools.chain(() if module is None else (module,), modules_on_stack(frame))
        if self._is_given:
            return next(filter(None, (self._place(each, frame, inlined) for each in met)), None)
        stack = list(met)
        if not stack:
            return Place(None, None)
        with self._lock:
            root = self._root_of(stack[-1])
        for found in stack:
            path = root.path_of(identity(found))
            if path is not None:
                return Place(path, root.step(frame, inlined), self._roots.index(root))
        return Place(None, None)

    def _place(
        self, module: nn.Module, frame: FrameType | None, inlined: Inlined | None
    ) -> Place | None:
        root = self._roots[0]
        path = root.path_of(identity(module))
        return None if path is None else Place(path, root.step(frame, inlined))

    def _meet_before_threads(self, module: nn.Module) -> None:
        """Note which model calls replicas: their threads don't show it."""
        frame = sys._getframe(1)
        outermost = [module, *modules_on_stack(frame)][-1]
        with self._lock:
            self._root_of(outermost).step(frame)

    def _root_of(self, outermost: nn.Module) -> Root:
        """Return the model that an outermost module is, or is a part of; a new one if need be."""
        model = innermost(outermost)
        place = identity(model)
        living = [root for root in self._roots if root.is_alive]
        for root in living:
            if root.place == place:
                return root
        for root in living:
            if root.path_of(place) is not None:
                return root
        root = Root(model)
        self._roots.append(root)
        self._watch(type(model), *wrappers_to_watch())
        return root

    def _watch(self, *classes: type) -> None:
        for cls in classes:
            if cls not in self._watched:
                watch_calls(cls)
                self._watched[cls] = None
