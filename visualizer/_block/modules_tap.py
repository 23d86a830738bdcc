"""Outputs of modules, and what they were called with."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from visualizer._block.entry import ModuleInputs
from visualizer._block.patterns import Match, find_modules
from visualizer._block.places import Place, Places, identity
from visualizer._block.sites import Site, SiteRecorder
from visualizer._intercept.calls import unwatch_calls, watch_calls

__all__ = ["ModulesTap", "TappedModule"]


class TappedModule:
    """A module whose outputs are taken.

    Attributes:
        output: Where they are kept.
        input: Where its inputs are kept; None if they are not wanted.
        is_container: It has no forward of its own, as a `ModuleList`, and is never called.
        layer: What `{layer}` stood for, or the place in order of appearance.
    """

    def __init__(self, path: str, layer: int | None, inputs: bool) -> None:
        self.path = path
        self.layer = layer
        self.is_container = False
        name = path or "the model"
        self.output = Site("output", f"the output of {name}")
        self.input = Site("input", f"the inputs of {name}") if inputs else None


class _Calls(threading.local):
    """The calls that this thread is in, of modules that are tapped."""

    def __init__(self) -> None:
        self.running: list[tuple[int, int]] = []

    def end(self, place: int) -> int | None:
        """Return which call of a module ends now; None if it began before the block."""
        if not self.running or self.running[-1][0] != place:
            return None
        return self.running.pop()[1]


class ModulesTap:
    """Records modules that patterns fit.

    Raises:
        UnknownModuleError: A pattern fits none.
        TypeError: There is no model to look in.
    """

    def __init__(
        self, wanted: Sequence[str], places: Places, recorder: SiteRecorder, *, inputs: bool
    ) -> None:
        self._recorder, self._places = recorder, places
        if not isinstance(wanted, Iterable):
            raise TypeError(
                f"modules is {wanted!r}; expected paths or patterns, such as 'blocks.*'"
            )
        asked = [wanted] if isinstance(wanted, str) else list(wanted)
        if asked and not places.is_given:
            raise TypeError(
                f"capture(modules={wanted!r}) needs the model whose modules these are: "
                f"capture(model, modules={wanted!r})"
            )
        known = places.paths() if asked else {}
        self.matches: list[Match] = [find_modules(pattern, known) for pattern in asked]
        self.modules: dict[str, TappedModule] = {}
        self._by_identity: dict[int, TappedModule] = {}
        self._classes: set[type] = set()
        for match in self.matches:
            for path, layer in match.layers.items():
                self._add(path, known[path], layer, inputs)
        self._seen: dict[str, int] = {}
        self._calls = _Calls()
        self._watched: list[type] = []

    def _add(self, path: str, module: nn.Module, layer: int | None, inputs: bool) -> None:
        tapped = self.modules.get(path)
        if tapped is None:
            tapped = self.modules[path] = TappedModule(path, layer, inputs)
            forward = inspect.getattr_static(type(module), "forward", None)
            tapped.is_container = forward is vars(nn.Module)["forward"]
        elif tapped.layer is None:
            tapped.layer = layer
        self._by_identity[identity(module)] = tapped
        self._classes.add(type(module))

    def install(self) -> None:
        """Watch the modules' classes."""
        for cls in self._classes:
            watch_calls(cls)
            self._watched.append(cls)

    def remove(self) -> list[str]:
        """Watch them no more, and return what could not be put back."""
        released = [unwatch_calls(self._watched.pop()) for _ in range(len(self._watched))]
        return [trouble for trouble in released if trouble is not None]

    def on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take what a module is called with, before it can change that."""
        tapped = self._by_identity.get(identity(module))
        if tapped is None:
            return
        call = self._recorder.begin(tapped.output)
        self._calls.running.append((identity(module), call))
        if tapped.input is not None:
            self._recorder.begin(tapped.input)
            self._record(tapped, tapped.input, ModuleInputs(args, dict(kwargs)), module, call)

    def on_return(self, module: nn.Module, output: Any) -> None:
        """Take what a module returns."""
        tapped = self._by_identity.get(identity(module))
        if tapped is None:
            return
        call = self._calls.end(identity(module))
        if call is not None:
            self._record(tapped, tapped.output, output, module, call)
        if type(module) not in self._classes:  # a lazy module is another after its first call
            self._classes.add(type(module))
            watch_calls(type(module))
            self._watched.append(type(module))

    def on_raise(self, module: nn.Module) -> None:
        """Note that an exception has left a module."""
        if identity(module) in self._by_identity:
            self._calls.end(identity(module))

    def _record(
        self, tapped: TappedModule, site: Site, value: Any, module: nn.Module, call: int
    ) -> None:
        place = self._places.find(None, module) or Place(tapped.path, None)
        layer = tapped.layer
        if layer is None:
            layer = self._seen.setdefault(tapped.path, len(self._seen))
        self._recorder.record(site, value, Place(tapped.path, place.step), layer, call)
