"""What was captured, by where it comes from."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any

from visualizer._capture.captured_list import CapturedList
from visualizer._capture.eager_stance import eager_stance
from visualizer._capture.notices import notify
from visualizer._capture.snapshot import CannotRecordError, nbytes, snapshot
from visualizer._capture.tensors import Obstacle, find_obstacle
from visualizer.rewrite import UNBOUND

__all__ = ["Site", "Sites", "sites"]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Site:
    """One variable of one function, and what was captured there.

    Functions that share a code object (closures made by one factory) share a site.

    Attributes:
        module: The function's `__module__`.
        qualname: The function's `__qualname__`.
        variable: The local's name.
        code: The code object, weakly.
        functions: The functions that deliver here.
        values: The entries, in call order.
        calls_unbound: How many calls ended with the name bound to nothing.
        not_recorded: How many calls were not recorded, by reason.
        line: The function's first line.
        error: The first error that recording raised.
        is_superseded: A function defined later has the same name.
    """

    module: str
    qualname: str
    variable: str
    code: weakref.ref[CodeType]
    line: int
    functions: weakref.WeakSet[FunctionType] = field(default_factory=weakref.WeakSet, init=False)
    values: CapturedList = field(init=False)
    calls_unbound: int = field(default=0, init=False)
    not_recorded: dict[str, int] = field(default_factory=dict, init=False)
    error: Exception | None = field(default=None, init=False)
    is_superseded: bool = field(default=False, init=False)
    was_explained: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> list[Any]:
        """Begin a new list, and return the old one, which keeps what it has."""
        before = getattr(self, "values", None)
        itself = weakref.ref(self)
        self.values = CapturedList(why_empty=lambda: explain_empty(itself()))
        self.calls_unbound, self.error = 0, None
        self.not_recorded = {}
        self.was_explained = False
        return before if before is not None else []


def explain_empty(site: Site | None) -> str:
    """Say why a site has no values, and what to do."""
    if site is None:
        return "its function is gone."
    where, name = f"{site.qualname}()", site.variable
    if site.error is not None:
        return f"recording {name!r} of {where} raised {type(site.error).__name__}: {site.error}"
    if site.calls_unbound:
        return (
            f"{where} returned {site.calls_unbound}×, and {name!r} was never bound then. "
            "A branch that does not assign it was taken; in attention code that is the fused "
            "kernel, which keeps no map. Take it with capture(attention=True), or switch the "
            "fused kernel off (timm: module.fused_attn = False; transformers: "
            "attn_implementation='eager')."
        )
    if site.not_recorded:
        return f"{where} ran, but was not recorded, because {next(iter(site.not_recorded))}."
    if not sites.is_active:
        return f"get_local is not active; call get_local.activate(), then run {where}."
    return (
        f"{where} has not returned since get_local was activated or cleared. Did the model run, "
        "and as Python? Scripted, traced and exported models run no Python code."
    )


class Sites:
    """All sites, and the memory that their values take. One for the process.

    Attributes:
        warn_bytes: The size from which on a warning is given, once.
        is_active: Whether decorated functions deliver here at present.
    """

    def __init__(self, warn_bytes: int = 2**30) -> None:
        self.warn_bytes = warn_bytes
        self.is_active = False
        self._sites: list[Site] = []
        self._bytes = 0
        self._has_warned = False
        self._lock = threading.RLock()

    def __iter__(self) -> Iterator[Site]:
        """Yield the sites, the oldest first; without those that nobody can mean any more."""
        with self._lock:
            self._sites = [
                site
                for site in self._sites
                if site.functions or (site.values and not site.is_superseded)
            ]
            return iter(list(self._sites))

    def renew_lock(self) -> None:
        self._lock = threading.RLock()

    def get(self, function: FunctionType, variable: str, code: CodeType) -> Site:
        """Return the site of a function's variable."""
        with self._lock:
            module, qualname = function.__module__ or "?", function.__qualname__
            for site in self._sites:
                if (
                    site.code() is not code and function in site.functions
                ):  # it was given other code
                    site.functions.discard(function)
                    site.is_superseded = True
            for site in self._sites:
                if site.code() is code and (site.qualname, site.variable) == (qualname, variable):
                    break
            else:
                site = Site(module, qualname, variable, weakref.ref(code), code.co_firstlineno)
                self._sites.append(site)
            site.functions.add(function)
            return site

    def rename(self, function: FunctionType, code: CodeType) -> None:
        """Let what was captured from a code object be that function's."""
        for site in list(self._sites):
            if site.code() is code:
                site.module, site.qualname = function.__module__ or "?", function.__qualname__

    def supersede(self, function: FunctionType, code: CodeType, keep: Sequence[CodeType]) -> None:
        """Note that a function's name means this code now, and forget what others delivered.

        Those of the codes `keep` stay for as long as a function has them.
        """
        name = function.__module__ or "?", function.__qualname__
        with self._lock:
            for site in list(self._sites):
                if (site.module, site.qualname) != name or site.code() is code:
                    continue
                site.is_superseded = True
                if not any(site.code() is kept for kept in keep):
                    self._sites.remove(site)

    def record_one(self, site: Site, value: Any) -> None:
        """Keep the one value that one call handed over: `record`, without what is uncommon."""
        if value is UNBOUND or eager_stance.is_unexplained or find_obstacle() is not None:
            self.record(((site, value),))
            return
        try:
            entry = snapshot(value)
        except Exception:
            self.record(((site, value),))  # which knows what to make of it
            return
        size = nbytes(entry)
        with self._lock:
            site.values.append(entry)
            self._bytes += size
        if self._bytes > self.warn_bytes and not self._has_warned:
            self._warn_of_size()

    def record(self, taken: Iterable[tuple[Site, Any]]) -> None:
        """Keep what one call handed over."""
        obstacle = find_obstacle()
        if obstacle is not None:
            self._pass_over(taken, obstacle)
            return
        entries, refused = self._copy(taken)
        sizes = [nbytes(entry) for _, entry in entries]
        with self._lock:
            for (site, entry), size in zip(entries, sizes, strict=True):
                site.values.append(entry)
                self._bytes += size
        # Last, since a warning may have been made an error.
        if refused:
            self._explain_refused(refused)
        if eager_stance.is_unexplained:
            eager_stance.is_unexplained = False  # one look is enough
            eager_stance.explain()
        if self._bytes > self.warn_bytes and not self._has_warned:
            self._warn_of_size()

    def _copy(
        self, taken: Iterable[tuple[Site, Any]]
    ) -> tuple[list[tuple[Site, Any]], list[tuple[Site, str]]]:
        """Return `(site, entry)` for what can be recorded, `(site, reason)` for what can't."""
        entries: list[tuple[Site, Any]] = []
        refused: list[tuple[Site, str]] = []
        for site, value in taken:
            if value is UNBOUND:
                site.calls_unbound += 1
                continue
            try:
                entries.append((site, snapshot(value)))
            except CannotRecordError as reason:
                refused.append((site, str(reason)))
            except Exception as error:
                # Without its traceback, which would keep every local of every caller alive.
                site.error = site.error or error.with_traceback(None)
        return entries, refused

    def clear(self) -> None:
        """Begin a new list everywhere."""
        with self._lock:
            for site in self._sites:
                site.clear()
            self._bytes, self._has_warned = 0, False

    def _pass_over(self, taken: Iterable[tuple[Site, Any]], obstacle: Obstacle) -> None:
        if obstacle is Obstacle.TRACE:
            self._explain_refused([(site, obstacle.value) for site, _ in taken])
        elif obstacle is Obstacle.BACKWARD:
            for site, _ in taken:  # as it should be, so no warning
                site.not_recorded.setdefault(obstacle.value, 0)

    def _explain_refused(self, refused: Sequence[tuple[Site, str]]) -> None:
        for site, reason in refused:
            is_new = reason not in site.not_recorded
            site.not_recorded[reason] = site.not_recorded.get(reason, 0) + 1
            if is_new:
                notify(
                    f"{site.variable!r} of {site.qualname}() was not captured, because {reason}."
                )

    def _warn_of_size(self) -> None:
        sizes = {
            site: nbytes(list.copy(site.values)) for site in self
        }  # without waiting for copies
        self._bytes = sum(sizes.values())  # what users took out of the lists is not ours any more
        if self._bytes <= self.warn_bytes:
            return
        self._has_warned = True
        largest = max(sizes, key=lambda site: sizes[site])
        notify(
            f"get_local.cache holds {_size(self._bytes)}, {_size(sizes[largest])} of it "
            f"{len(largest.values)} values of {largest.variable!r} from {largest.qualname}(), and "
            "it grows with every call. get_local.clear() frees it; get_local.deactivate() stops "
            "capturing."
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


sites = Sites()
if hasattr(os, "register_at_fork"):  # a DataLoader's worker: another thread may hold the lock
    os.register_at_fork(after_in_child=sites.renew_lock)
