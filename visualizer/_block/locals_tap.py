"""Locals of functions, for as long as the block is open."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

from visualizer._block.places import Place, Places
from visualizer._block.sites import Site, SiteRecorder, is_second_time
from visualizer._intercept.observers import Observer, find_observers
from visualizer.errors import CodeReplacedError, SinkError
from visualizer.rewrite import UNBOUND, Instrumentation, check_locals, instrument, uninstrumented

__all__ = ["LocalsTap", "TappedFunction"]


class TappedFunction:
    """A function of which locals are taken, or several of one code, as a factory makes them.

    Attributes:
        functions: They.
        code: Their code object.
        module: Its `__module__`.
        qualname: Its `__qualname__`.
        sites: By variable.
        foreign: How many calls were not the model's.
    """

    def __init__(self, function: FunctionType, names: tuple[str, ...]) -> None:
        self.functions = [function]
        self.code = uninstrumented(function)
        self.module = function.__module__ or "?"
        self.qualname = function.__qualname__
        self.key = f"{self.module}:{self.qualname}"
        self.sites = {
            name: Site("local", f"{name!r} of {self.qualname}()", self.key, name) for name in names
        }
        self.foreign = 0
        self._layers: dict[tuple[int, str], int] = {}

    def layer(self, place: Place) -> int | None:
        """Return the index of a module, in order of first appearance."""
        if place.module_path is None:
            return None
        return self._layers.setdefault((place.root, place.module_path), len(self._layers))

    def add(self, names: tuple[str, ...]) -> None:
        """Take more of its locals."""
        for name in names:
            self.sites.setdefault(
                name, Site("local", f"{name!r} of {self.qualname}()", self.key, name)
            )


class LocalsTap:
    """Instruments functions and records what they hand over.

    Args:
        wanted: `{function or "module:Qual.name": names}`.
        owner: The capture whose observers decide which calls count.
    Raises:
        TargetNotFoundError, NotInstrumentableError, UnknownLocalError: As for `instrument`.
    """

    def __init__(
        self,
        wanted: Mapping[Any, Iterable[str]],
        owner: Observer,
        places: Places,
        recorder: SiteRecorder,
    ) -> None:
        self._owner = weakref.ref(owner)  # which has this
        self._places, self._recorder = places, recorder
        self.functions: list[TappedFunction] = []
        self._handles: list[Instrumentation] = []
        for target, names in _pairs(wanted):
            self._add(target, names)

    def _add(self, target: Any, names: tuple[str, ...]) -> None:
        function = check_locals(target, *names)
        for known in self.functions:
            if known.code is uninstrumented(function) and known.qualname == function.__qualname__:
                known.add(names)
                if function not in known.functions:
                    known.functions.append(function)
                return
        self.functions.append(TappedFunction(function, names))

    def install(self) -> None:
        """Instrument the functions."""
        for tapped in self.functions:
            sink = self._sink(tapped)
            for function in tapped.functions:
                self._handles.append(instrument(function, *tapped.sites, sink=sink))

    def remove(self) -> list[str]:
        """Give every function its own code back, and return what went wrong.

        Code that somebody else put into a function meanwhile stays.
        """
        troubles = []
        while self._handles:
            try:
                self._handles.pop().remove()
            except (CodeReplacedError, SinkError) as error:
                troubles.append(str(error))
        return troubles

    def _sink(self, tapped: TappedFunction) -> Callable[..., None]:
        def take(*values: Any) -> None:
            if self._owner() not in find_observers():
                return
            if is_second_time():
                return
            place = self._places.find(sys._getframe(1))
            if place is None:
                tapped.foreign += 1
            else:
                self._record(tapped, values, place)

        return take

    def _record(self, tapped: TappedFunction, values: tuple[Any, ...], place: Place) -> None:
        layer = tapped.layer(place)
        for site, value in zip(tapped.sites.values(), values, strict=True):
            call = self._recorder.begin(site)
            if value is UNBOUND:
                site.unbound += 1
            else:
                self._recorder.record(site, value, place, layer, call)


def _pairs(wanted: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """Return what is asked for as `(target, names)`; one name may stand alone.

    Raises:
        TypeError: Something else than a mapping from functions to names.
    """
    if not isinstance(wanted, Mapping):
        raise TypeError(
            f"locals is {wanted!r}; expected {{function or 'module:Qual.name': names}}, such as "
            f"{{'timm.models.vision_transformer:Attention.forward': ['attn']}}"
        )
    pairs = []
    for target, asked in wanted.items():
        several = tuple(asked) if isinstance(asked, Iterable) else ()
        names = (asked,) if isinstance(asked, str) else several
        if not names or not all(isinstance(name, str) for name in names):
            raise TypeError(f"locals[{target!r}] is {asked!r}; expected names of locals, ['attn']")
        pairs.append((target, names))
    return pairs
