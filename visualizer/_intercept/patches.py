"""Attributes that are replaced while somebody needs it, and are the original again afterwards."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from visualizer._capture.notices import notify

__all__ = ["Patches", "patches"]

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
        """Replace an attribute by `make(attribute)`, unless that was done before."""
        with self._lock:
            replaced = self._replaced.get((id(owner), name))
            if replaced is not None:
                replaced.users += 1
                return
            original = vars(owner).get(name, _ABSENT)
            wrapper = make(getattr(owner, name))
            setattr(owner, name, wrapper)
            self._replaced[id(owner), name] = _Replacement(owner, name, wrapper, original)

    def release(self, owner: Any, name: str) -> None:
        """Put the original back, unless somebody else needs the replacement."""
        with self._lock:
            replaced = self._replaced.get((id(owner), name))
            if replaced is None:
                return
            replaced.users -= 1
            if replaced.users == 0:
                del self._replaced[id(owner), name]
                _restore(replaced)

    def pair(self, owner: Any, name: str) -> tuple[Any, Any] | None:
        """Return an attribute's original and what stands in for it; None where nothing does."""
        replaced = self._replaced.get((id(owner), name))
        return None if replaced is None else (replaced.original, replaced.wrapper)

    def __len__(self) -> int:
        return len(self._replaced)


def _restore(replaced: _Replacement) -> None:
    owner, name = replaced.owner, replaced.name
    if vars(owner).get(name, _ABSENT) is not replaced.wrapper:
        notify(
            f"{getattr(owner, '__name__', owner)}.{name} was replaced by somebody else while a "
            "capture was open; theirs stays, and calls what was there during the capture."
        )
    elif replaced.original is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, replaced.original)


class Aliases:
    """Finds where modules hold an object under a name of their own (`from … import …`).

    Looking through a few thousand modules takes some 10 ms. So that is done when there are others
    than last time, and of those that are not new for the ones that have another number of names.
    """

    def __init__(self) -> None:
        self._sizes: weakref.WeakKeyDictionary[ModuleType, int] = weakref.WeakKeyDictionary()
        self._last: tuple[int, str | None] = (0, None)
        self._known: weakref.WeakKeyDictionary[ModuleType, set[str]] = weakref.WeakKeyDictionary()

    def find(self, wanted: Container[int]) -> Iterator[tuple[ModuleType, str, Any]]:
        """Yield `(module, name, object)` for objects whose `id` is wanted."""
        for module in self._new_modules():
            hits = {name for name, value in list(vars(module).items()) if id(value) in wanted}
            if hits:
                self._known.setdefault(module, set()).update(hits)
        for module, known in list(self._known.items()):
            for name in known:
                value = vars(module).get(name)
                if id(value) in wanted:
                    yield module, name, value

    def _new_modules(self) -> Iterator[ModuleType]:
        """Yield modules that were not looked through as they are: new ones, and `__main__`."""
        main = sys.modules.get("__main__")
        if main is not None:  # in a notebook, cells bind names anew
            yield main
        last = len(sys.modules), next(reversed(sys.modules), None)
        if last == self._last:
            return
        self._last = last
        for module in list(sys.modules.values()):
            if not isinstance(module, ModuleType) or _is_torchs(module):
                continue
            if self._sizes.get(module) != len(vars(module)):
                self._sizes[module] = len(vars(module))
                yield module


def _is_torchs(module: ModuleType) -> bool:
    """Tell whether a module is torch's own: those are replaced where it is known what they do."""
    name = vars(module).get("__name__", "")
    return isinstance(name, str) and (name == "torch" or name.startswith("torch."))


patches = Patches()
aliases = Aliases()
