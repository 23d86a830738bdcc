"""Attributes that are replaced while somebody needs it, and are the original again afterwards."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

__all__ = ["Patches", "aliases", "patches", "replace_references"]

_ABSENT = object()


@dataclass(slots=True, eq=False)
class _Replacement:
    owner: Any
    name: str
    wrapper: Any
    original: Any
    users: int = 1


class Patches:
    """All replaced attributes, counted by their users. One for the process."""

    def __init__(self) -> None:
        self._replaced: dict[tuple[int, str], _Replacement] = {}
        self._lock = threading.RLock()

    def acquire(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace an attribute, or None, by `make(attribute)`, unless that was done before."""
        with self._lock:
            replaced = self._replaced.get((id(owner), name))
            if replaced is not None:
                replaced.users += 1
                return
            original = vars(owner).get(name, _ABSENT)
            wrapper = make(getattr(owner, name, None))
            setattr(owner, name, wrapper)
            self._replaced[id(owner), name] = _Replacement(owner, name, wrapper, original)

    def release(self, owner: Any, name: str) -> str | None:
        """Put the original back, unless somebody else needs the replacement.

        Returns:
            What could not be put back; None if nothing.
        """
        with self._lock:
            replaced = self._replaced.get((id(owner), name))
            if replaced is None:
                return None
            replaced.users -= 1
            if replaced.users:
                return None
            del self._replaced[id(owner), name]
            return _restore(replaced)

    def pair(self, owner: Any, name: str) -> tuple[Any, Any] | None:
        """Return an attribute's original and what stands in for it; None where nothing does."""
        replaced = self._replaced.get((id(owner), name))
        return None if replaced is None else (replaced.original, replaced.wrapper)

    def uses(self, wrapper: Any) -> bool:
        """Tell whether something stands in for an attribute at present."""
        with self._lock:
            return any(each.wrapper is wrapper for each in self._replaced.values())


def _restore(replaced: _Replacement) -> str | None:
    owner, name = replaced.owner, replaced.name
    if vars(owner).get(name, _ABSENT) is not replaced.wrapper:
        return (
            f"{getattr(owner, '__name__', owner)}.{name} was replaced by somebody else while a "
            "capture was open; theirs stays, and calls what was there during the capture."
        )
    if replaced.original is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, replaced.original)
    return None


class Aliases:
    """Finds where modules hold a function under a name of their own (`from … import …`).

    Looking through a few thousand modules takes some 10 ms. So that is only done when somebody has
    taken or dropped a reference to one of the functions since, which their reference counts tell.
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._known: weakref.WeakKeyDictionary[ModuleType, set[str]] = weakref.WeakKeyDictionary()

    def find(self, functions: dict[int, Any]) -> Iterator[tuple[ModuleType, str, Any]]:
        """Yield `(module, name, function)` for functions, given by their `id`."""
        counts = {place: sys.getrefcount(function) for place, function in functions.items()}
        if counts != self._counts:
            self._known = _look_through_modules(functions)
            self._counts = counts
        for module, names in list(self._known.items()):
            for name in names:
                value = vars(module).get(name)
                if id(value) in functions:
                    yield module, name, value


def _look_through_modules(
    wanted: Container[int],
) -> weakref.WeakKeyDictionary[ModuleType, set[str]]:
    found: weakref.WeakKeyDictionary[ModuleType, set[str]] = weakref.WeakKeyDictionary()
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and not _is_torchs(module):
            names = {name for name, value in list(vars(module).items()) if id(value) in wanted}
            if names:
                found[module] = names
    return found


def _is_torchs(module: ModuleType) -> bool:
    """Tell whether a module is torch's own: those are replaced where it is known what they do."""
    name = vars(module).get("__name__", "")
    return isinstance(name, str) and (name == "torch" or name.startswith("torch."))


def replace_references(wrapper: Any, original: Any) -> None:
    """Put an original where the program took what stood in for it while that was in place.

    In modules, in attributes of objects and classes, in dicts and in lists.
    """
    for holder in gc.get_referrers(wrapper):
        if isinstance(holder, list):
            holder[:] = [original if item is wrapper else item for item in holder]
            continue
        names = holder if isinstance(holder, dict) else getattr(holder, "__dict__", None)
        if isinstance(names, dict):
            for name in [name for name, value in list(names.items()) if value is wrapper]:
                names[name] = original


patches = Patches()
aliases = Aliases()
