"""Which functions are to be tapped, and when: decorated ones while active, patched ones always."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType, TracebackType
from typing import Any

from visualizer._capture.eager_stance import eager_stance
from visualizer._capture.notices import notify
from visualizer._capture.sites import Site, sites
from visualizer._compat import facts
from visualizer.errors import (
    CodeReplacedError,
    SinkError,
    UnknownLocalError,
    UnsupportedPythonError,
)
from visualizer.rewrite import Instrumentation, check_locals, instrument, restore
from visualizer.rewrite import uninstrumented as original_code

__all__ = ["Patch", "Taps", "taps"]


@dataclass(eq=False, slots=True)
class _Wish:
    """Somebody's wish to have some locals of a function.

    Attributes:
        names: The locals.
        is_lasting: It holds whether get_local is active or not.
    """

    names: tuple[str, ...]
    is_lasting: bool


class _Tap:
    """One function that is tapped: all wishes for it, served by one instrumentation."""

    def __init__(self, function: FunctionType) -> None:
        self.function = weakref.ref(function)
        self.qualname = function.__qualname__
        self.wishes: list[_Wish] = []
        self._handle: Instrumentation | None = None

    def wanted(self, is_active: bool) -> tuple[str, ...]:
        holding = [wish for wish in self.wishes if is_active or wish.is_lasting]
        return tuple(dict.fromkeys(name for wish in holding for name in wish.names))

    def update(self, is_active: bool) -> None:
        """Make what is instrumented equal to what is wanted.

        Raises:
            CodeReplacedError: Somebody else has replaced the function's code; theirs stays.
            UnknownLocalError: The code that the function has by now lacks a name.
        """
        function, names = self.function(), self.wanted(is_active)
        if function is None:
            return
        handle = self._handle
        if handle is not None and handle.names == names and handle.is_installed:
            return
        is_reloaded = restore(function)
        try:
            self._remove_handle(is_reloaded)
        finally:
            if names:
                self._install(function, names)

    def holds_foreign_code(self) -> bool:
        """Tell whether a reload put code into the function that was rewritten for another."""
        function, handle = self.function(), self._handle
        if function is None or (handle is not None and handle.is_installed):
            return False
        return original_code(function) is not function.__code__

    def _remove_handle(self, is_reloaded: bool) -> None:
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            handle.remove()
        except CodeReplacedError:
            if not is_reloaded:
                raise

    def _install(self, function: FunctionType, names: tuple[str, ...]) -> None:
        check_locals(function, *names)  # before there is a key for them
        code = original_code(function)
        places = [sites.get(function, name, code) for name in names]
        self._handle = instrument(function, *names, sink=_sink(places))


_ANONYMOUS = {"<lambda>", "_"}  # names that do not tell which function is meant


def _name_of(function: FunctionType) -> tuple[str, str]:
    return function.__module__ or "?", function.__qualname__


def _sink(places: list[Site]) -> Any:
    if len(places) == 1:
        return partial(sites.record_one, places[0])
    record = sites.record
    return lambda *values: record(zip(places, values, strict=True))


class Patch:
    """A handle on what `get_local.patch` does: `remove()` ends it, and so does leaving a block.

    The end of a block warns where `remove()` raises `CodeReplacedError`.
    """

    def __init__(self, owner: Taps, tap: _Tap, wish: _Wish) -> None:
        self._owner = owner
        self._tap = tap
        self._wish = wish

    def remove(self) -> None:
        """Stop capturing, and put back the code from before. Twice is the same as once.

        Raises:
            CodeReplacedError: Somebody else has replaced the function's code since.
            SinkError: Recording raised; the list of values is incomplete.
        """
        self._owner.withdraw(self._tap, self._wish)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.remove()
        except CodeReplacedError as replaced:
            notify(str(replaced))
        except SinkError as failed:
            if error is None:
                raise
            notify(str(failed))

    def __repr__(self) -> str:
        state = "in place" if self._wish in self._tap.wishes else "removed"
        return f"<patch of {', '.join(self._wish.names)} in {self._tap.qualname}, {state}>"


class Taps:
    """All tapped functions, remembered weakly. One for the process."""

    def __init__(self) -> None:
        self._taps: weakref.WeakKeyDictionary[FunctionType, _Tap] = weakref.WeakKeyDictionary()
        self._newest: dict[tuple[str, str], weakref.ref[CodeType]] = {}  # by function's name
        self._lock = threading.RLock()

    def decorate(self, target: object, names: tuple[str, ...], body: CodeType) -> None:
        """Tap a function whenever get_local is active.

        It replaces functions of its name (a cell ran again, a module was reloaded), but for
        those of the same body: a property's getter and setter are two functions.

        Args:
            target: What is decorated.
            names: Its locals.
            body: The code that is defining it: of a module, a class or a function.
        """
        try:
            function = check_locals(target, *names)
        except UnsupportedPythonError:
            if sites.is_active:
                raise
            return  # a decorated model runs on any Python; activate() refuses
        with self._lock:
            if function not in self._taps:
                siblings = [code for code in body.co_consts if isinstance(code, CodeType)]
                self._replace_namesakes(function, siblings)
            self._wish(function, _Wish(names, is_lasting=False))

    def patch(self, target: object, names: tuple[str, ...]) -> Patch:
        """Tap a function until the handle is removed."""
        function = check_locals(target, *names)  # without the lock: it may import
        with self._lock:
            wish = _Wish(names, is_lasting=True)
            return Patch(self, self._wish(function, wish), wish)

    def renew_lock(self) -> None:
        self._lock = threading.RLock()

    def withdraw(self, tap: _Tap, wish: _Wish) -> None:
        with self._lock:
            if wish in tap.wishes:
                tap.wishes.remove(wish)
                try:
                    tap.update(sites.is_active)
                finally:
                    self._update_stance()

    def activate(self) -> None:
        facts()
        with self._lock:
            sites.is_active = True
            self._update_all()

    def deactivate(self) -> None:
        with self._lock:
            self.adopt_reloaded()
            sites.is_active = False
            self._update_all()

    def adopt_reloaded(self) -> None:
        """Take over functions that a reload gave the code of a throwaway function of its own.

        IPython's autoreload runs the decorated definition anew inside a class of its own, and
        moves the code from there into the function that exists. What was captured meanwhile
        goes with it.
        """
        with self._lock:
            for tap in list(self._taps.values()):
                function = tap.function()
                if function is not None and tap.holds_foreign_code():
                    self._adopt(tap, function)

    def _adopt(self, tap: _Tap, function: FunctionType) -> None:
        code = original_code(function)
        sites.rename(function, code)
        for donor in list(self._taps.values()):
            other = donor.function()
            if donor is tap or other is None or original_code(other) is not code:
                continue
            if not tap.wishes:
                tap.wishes = [wish for wish in donor.wishes if not wish.is_lasting]
            if _name_of(other) != _name_of(function):
                donor.wishes.clear()
                self._settle([donor])
        self._replace_namesakes(function, siblings=())
        self._settle([tap])

    def _wish(self, function: FunctionType, wish: _Wish) -> _Tap:
        tap = self._taps.get(function)
        if tap is None:
            tap = self._taps[function] = _Tap(function)
        tap.wishes.append(wish)
        try:
            tap.update(sites.is_active)
            self._update_stance()
        except BaseException:
            tap.wishes.remove(wish)
            tap.update(sites.is_active)
            self._update_stance()
            raise
        return tap

    def _replace_namesakes(self, function: FunctionType, siblings: Sequence[CodeType]) -> None:
        """Let go of functions of this one's name, but for those that share its code or a body."""
        name, code = _name_of(function), original_code(function)
        if function.__name__ in _ANONYMOUS:
            return
        newest = self._newest.get(name)
        if newest is not None and newest() is code:
            return  # one more closure of a factory
        self._newest[name] = weakref.ref(code)
        staying = list(siblings) if any(code is sibling for sibling in siblings) else []
        for tap in list(self._taps.values()):
            other = tap.function()
            if other is None or _name_of(other) != name:
                continue
            others = original_code(other)
            if others is code:
                continue
            if not any(others is sibling for sibling in staying):
                tap.wishes = [wish for wish in tap.wishes if wish.is_lasting]
                self._settle([tap])
            if tap.wishes:
                staying.append(others)
        sites.supersede(function, code, staying)

    def _update_all(self) -> None:
        try:
            self._settle(list(self._taps.values()))
        finally:
            self._update_stance()

    def _settle(self, affected: Iterable[_Tap]) -> None:
        """Update all of them, whatever happens at one: warn, and raise a sink's error last."""
        failed: SinkError | None = None
        messages = []
        for tap in affected:
            try:
                tap.update(sites.is_active)
            except SinkError as error:
                failed = failed or error
            except (CodeReplacedError, UnknownLocalError) as error:
                messages.append(str(error))
            function = tap.function()
            if function is not None and not tap.wanted(sites.is_active):
                restore(function)
        if failed is not None:
            raise failed
        for message in messages:  # last, since a warning may have been made an error
            notify(message)

    def _update_stance(self) -> None:
        eager_stance.keep(
            sites.is_active or any(tap.wanted(is_active=False) for tap in self._taps.values())
        )


taps = Taps()
if hasattr(os, "register_at_fork"):  # a DataLoader's worker: another thread may hold the lock
    os.register_at_fork(after_in_child=taps.renew_lock)
