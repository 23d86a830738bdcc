"""What was captured, by where it comes from."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any

from visualizer._capture.device_copies import copies
from visualizer._capture.eager_stance import eager_stance
from visualizer._capture.notices import notify
from visualizer._capture.snapshot import CannotRecordError, nbytes, snapshot
from visualizer._capture.tensors import in_backward_pass, is_being_compiled, require_values
from visualizer.rewrite import UNBOUND

__all__ = ["CapturedList", "Site", "Sites", "sites"]

_BACKWARD = "autograd ran it in a backward pass, as it does to recompute a checkpoint"


def _waiting(name: str) -> Any:
    """Return a list's method that first waits for copies from a GPU."""
    method: Callable[..., Any] = getattr(list, name)

    @functools.wraps(method)
    def wait_and_read(self: CapturedList, *args: Any) -> Any:
        copies.wait()
        return method(self, *args)

    return wait_and_read


class CapturedList(list[Any]):
    """The captured values of one variable, in call order. An ordinary list but for two things.

    Reading it waits for copies that are still on their way from a GPU, and an index into an
    empty one says why it is empty.
    """

    __slots__ = ("_why_empty",)

    def __init__(
        self, values: Iterable[Any] = (), why_empty: Callable[[], str] | None = None
    ) -> None:
        super().__init__(values)
        self._why_empty = why_empty

    def __getitem__(self, index: Any) -> Any:
        copies.wait()
        try:
            return super().__getitem__(index)
        except IndexError:
            if self or self._why_empty is None:
                raise
            raise IndexError(f"nothing was captured: {self._why_empty()}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    __add__ = _waiting("__add__")
    __contains__ = _waiting("__contains__")
    __eq__ = _waiting("__eq__")
    __iter__ = _waiting("__iter__")
    __mul__ = _waiting("__mul__")
    __repr__ = _waiting("__repr__")
    __reversed__ = _waiting("__reversed__")
    __rmul__ = _waiting("__rmul__")
    copy = _waiting("copy")
    count = _waiting("count")
    index = _waiting("index")
    pop = _waiting("pop")


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

    def get(self, function: FunctionType, variable: str, code: CodeType) -> Site:
        """Return the site of a function's variable."""
        module, qualname = function.__module__ or "?", function.__qualname__
        for site in self._sites:
            if site.code() is not code and function in site.functions:  # it was given other code
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
        for site in self._sites:
            if site.code() is code:
                site.module, site.qualname = function.__module__ or "?", function.__qualname__

    def supersede(self, function: FunctionType, code: CodeType, keep: Sequence[CodeType]) -> None:
        """Note that a function's name means this code now, and forget what others delivered.

        Those of the codes `keep` stay for as long as a function has them.
        """
        name = function.__module__ or "?", function.__qualname__
        for site in list(self._sites):
            if (site.module, site.qualname) != name or site.code() is code:
                continue
            site.is_superseded = True
            if not any(site.code() is kept for kept in keep):
                self._sites.remove(site)

    def record(self, taken: Iterable[tuple[Site, Any]]) -> None:
        """Keep what one call handed over."""
        if is_being_compiled():
            return
        if in_backward_pass():
            for site, _ in taken:
                site.not_recorded.setdefault(_BACKWARD, 0)
            return
        entries, refused = self._copy(taken)
        with self._lock:
            for site, entry in entries:
                site.values.append(entry)
                self._bytes += nbytes(entry)
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
                require_values()
                entries.append((site, snapshot(value)))
            except CannotRecordError as reason:
                refused.append((site, str(reason)))
            except Exception as error:
                site.error = site.error or error
        return entries, refused

    def clear(self) -> None:
        """Begin a new list everywhere."""
        with self._lock:
            for site in self._sites:
                site.clear()
            self._bytes, self._has_warned = 0, False

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
