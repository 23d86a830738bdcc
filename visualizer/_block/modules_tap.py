"""Outputs of modules, and what they were called with."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

from torch import nn

from visualizer._block.entry import ModuleInputs
from visualizer._block.patterns import find_modules
from visualizer._block.places import Place, Places
from visualizer._block.roots import identity
from visualizer._block.sites import Site, SiteRecorder
from visualizer._block.wrappers import innermost, is_replica
from visualizer._intercept.calls import unwatch_calls, watch_calls
from visualizer.errors import UnknownModuleError

__all__ = ["ModulesTap", "TappedModule"]


class TappedModule:
    """A module whose outputs are taken.

    Attributes:
        output: Where they are kept.
        input: Where its inputs are kept; None if they are not wanted.
        is_container: It has no forward of its own, as a `ModuleList`, and is never called.
        layer: What `{layer}` stood for, or the place in order of appearance.
        place: The identity of the module that was found there; None where there is none by now.
        replicated: How many calls of DataParallel around it are running.
    """

    def __init__(self, path: str, layer: int | None, inputs: bool) -> None:
        self.path = path
        self.layer = layer
        self.is_container = False
        self.place: int | None = None
        self.replicated = 0
        name = path or "the model"
        self.output = Site("output", f"the output of {name}")
        self.input = Site("input", f"the inputs of {name}") if inputs else None

    def find(self, module: nn.Module) -> None:
        """Note which module is at the path."""
        forward = inspect.getattr_static(type(module), "forward", None)
        self.is_container = forward is vars(nn.Module)["forward"]
        self.place = identity(module)


class _Call(NamedTuple):
    """A call that runs.

    Attributes:
        place: The identity of what was called: the tapped module, or what is wrapped around it.
        number: Which call of the tapped module it is; None for a part of its wrapper's call.
        is_wrapped: Whether the call of what is wrapped is yet to come.
    """

    tapped: TappedModule
    place: int
    number: int | None
    is_wrapped: bool


class _Calls(threading.local):
    """The calls that this thread is in, of modules that are tapped."""

    def __init__(self) -> None:
        self.running: list[_Call] = []

    def end(self, module: nn.Module) -> _Call | None:
        """Return the call that ends now; None if it began before the block, or is not tapped."""
        if not self.running or self.running[-1].place != identity(module):
            return None
        call = self.running.pop()
        call.tapped.replicated -= isinstance(module, nn.DataParallel)
        return call


class ModulesTap:
    """Records modules that patterns fit.

    Raises:
        UnknownModuleError: A pattern fits none.
        TypeError: There is no model to look in.
    """

    def __init__(
        self, wanted: Sequence[str], places: Places, recorder: SiteRecorder, *, inputs: bool
    ) -> None:
        self._recorder, self._places, self._inputs = recorder, places, inputs
        if not isinstance(wanted, Iterable):
            raise TypeError(
                f"modules is {wanted!r}; expected paths or patterns, such as 'blocks.*'"
            )
        self.patterns = [wanted] if isinstance(wanted, str) else list(wanted)
        if self.patterns and not places.is_given:
            raise TypeError(
                f"capture(modules={wanted!r}) needs the model whose modules these are: "
                f"capture(model, modules={wanted!r})"
            )
        self.modules: dict[str, TappedModule] = {}
        self._known: frozenset[str] = frozenset()
        self._seen: dict[str, int] = {}
        self._calls = _Calls()
        self._classes: dict[type, None] = {}
        self._watched: list[type] = []
        self._is_installed = False
        self._lock = threading.RLock()
        self._look_for_modules()

    def _look_for_modules(self) -> None:
        """Find the modules that the patterns fit, by now."""
        known = self._places.paths() if self.patterns else {}
        self._known = frozenset(known)
        for tapped in self.modules.values():
            tapped.place = None
        for pattern in self.patterns:
            with suppress(UnknownModuleError) if self._is_installed else nullcontext():
                for path, layer in find_modules(pattern, known).layers.items():
                    self._add(path, known[path], layer)

    def _add(self, path: str, module: nn.Module, layer: int | None) -> None:
        tapped = self.modules.get(path)
        if tapped is None:
            tapped = self.modules[path] = TappedModule(path, layer, self._inputs)
        elif tapped.layer is None:
            tapped.layer = layer
        tapped.find(module)
        self._watch(type(module))

    def _watch(self, cls: type) -> None:
        if cls not in self._classes:
            self._classes[cls] = None
            if self._is_installed:
                watch_calls(cls)
                self._watched.append(cls)

    def install(self) -> None:
        """Watch the modules' classes."""
        self._is_installed = True
        for cls in self._classes:
            watch_calls(cls)
            self._watched.append(cls)

    def remove(self) -> list[str]:
        """Watch them no more, and return what could not be put back."""
        self._is_installed = False
        released = [unwatch_calls(self._watched.pop()) for _ in range(len(self._watched))]
        return [trouble for trouble in released if trouble is not None]

    def on_step(self) -> None:
        """Look whether the program has put other modules in the places of those that are tapped."""
        path_of = self._places.path_of
        for path, tapped in self.modules.items():
            if tapped.place is not None and path_of(tapped.place) != path:
                return self._look_again()
        return None

    def _look_again(self) -> None:
        with self._lock:
            self._look_for_modules()

    def _find(self, module: nn.Module) -> TappedModule | None:
        path = self._places.path_of(identity(module))
        if path is None:
            return None
        if path not in self._known:  # it was added in the block
            self._look_again()
        return self.modules.get(path)

    def on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take what a module is called with, before it can change that."""
        if not self.modules:
            return
        inner = innermost(module)
        tapped = self._find(inner)
        if tapped is None:
            return
        number = None
        if not self._is_part(tapped, module):
            number = self._recorder.begin(tapped.output)
            if tapped.input is not None:
                self._recorder.begin(tapped.input)
                self._record(tapped, tapped.input, ModuleInputs(args, dict(kwargs)), number)
        self._calls.running.append(_Call(tapped, identity(module), number, module is not inner))
        tapped.replicated += isinstance(module, nn.DataParallel)

    def _is_part(self, tapped: TappedModule, module: nn.Module) -> bool:
        """Tell whether a call is a part of one of what is wrapped around the module."""
        last = self._calls.running[-1] if self._calls.running else None
        if last is not None and last.tapped is tapped and last.is_wrapped:
            return True
        return tapped.replicated > 0 and is_replica(module)

    def on_return(self, module: nn.Module, output: Any) -> None:
        """Take what a module returns."""
        call = self._calls.end(module)
        if call is None:
            return
        if call.number is not None:
            self._record(call.tapped, call.tapped.output, output, call.number)
        self._watch(type(innermost(module)))  # a lazy module is another after its first call

    def on_raise(self, module: nn.Module) -> None:
        """Note that an exception has left a module."""
        self._calls.end(module)

    def _record(self, tapped: TappedModule, site: Site, value: Any, call: int) -> None:
        layer = tapped.layer
        if layer is None:
            layer = self._seen.setdefault(tapped.path, len(self._seen))
        place = Place(tapped.path, self._places.step(sys._getframe(1)))
        self._recorder.record(site, value, place, layer, call)
