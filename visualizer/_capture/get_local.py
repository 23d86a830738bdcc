"""`get_local`: the decorator that takes locals out of functions while it is active."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from visualizer._capture.cache import Cache
from visualizer._capture.sites import sites
from visualizer._capture.taps import Patch, taps
from visualizer.errors import NotInstrumentableError

__all__ = ["get_local"]

F = TypeVar("F")


class _GetLocalType(type):
    """Makes `cache` and `is_activate` properties of the class, so that old habits act."""

    @property
    def cache(cls) -> Cache:
        """The captured values, `{key: [entry, …]}`; read-only."""
        return _cache

    @cache.setter
    def cache(cls, value: Mapping[str, Any]) -> None:
        if len(value):
            raise TypeError(
                "get_local.cache can't be replaced, since the functions that run fill it. "
                "dict(get_local.cache) is a copy of your own; get_local.clear() empties it."
            )
        sites.clear()

    @property
    def is_activate(cls) -> bool:
        """Whether decorated functions are captured. Setting it activates or deactivates."""
        return sites.is_active

    @is_activate.setter
    def is_activate(cls, value: bool) -> None:
        if value:
            taps.activate()
        else:
            taps.deactivate()


class get_local(metaclass=_GetLocalType):  # noqa: N801 - the name that its users know
    """Take the final values of named locals out of every call of a function, while active.

    The decorator returns what it was given, unchanged. After `get_local.activate()`, called
    before or after the function is defined or imported, every call's values go into
    `get_local.cache`, under the function's `__qualname__`. After `get_local.deactivate()` the
    function has its own code again.

    Args:
        *names: Locals of the function: arguments, variables, cell and free variables.
        varname: One more, for code that names it by this keyword.
    Raises:
        UnknownLocalError: At decoration: the function never has a local of that name.
        NotInstrumentableError: At decoration: a class, a builtin or the like was decorated.

    Example:
        >>> @get_local("attn")
        ... def attend(scores):
        ...     attn = [score / sum(scores) for score in scores]
        ...     return max(attn)
        >>> get_local.activate()
        >>> attend([1, 3])
        0.75
        >>> get_local.cache["attend"]
        [[0.25, 0.75]]
        >>> get_local.deactivate()
        >>> get_local.clear()
    """

    def __init__(self, *names: str, varname: str | None = None) -> None:
        self.names = names if varname is None else (*names, varname)
        _require_names(self.names)

    def __call__(self, target: F) -> F:
        taps.decorate(target, self.names, body=sys._getframe(1).f_code)
        return target

    def __repr__(self) -> str:
        return f"get_local({', '.join(map(repr, self.names))})"

    @classmethod
    def activate(cls) -> None:
        """Capture from every decorated function, those defined later included.

        Raises:
            UnsupportedPythonError: The engine does not know this Python.
        """
        taps.activate()

    @classmethod
    def deactivate(cls) -> None:
        """Give every decorated function its own code back. What was captured stays.

        Raises:
            SinkError: Recording raised during a call; everything is restored all the same.
        """
        taps.deactivate()

    @classmethod
    def clear(cls) -> None:
        """Begin a new list under every key. Lists that were taken before keep their values."""
        sites.clear()

    @classmethod
    def patch(cls, target: object, *names: str) -> Patch:
        """Capture from a function that is not decorated, until the handle is removed.

        Args:
            target: A function, a method, or `"package.module:Qual.name"`.
            *names: Its locals.
        Returns:
            A handle with `remove()`; also a context manager.
        Raises:
            UnknownLocalError, NotInstrumentableError, TargetNotFoundError: As for
                `visualizer.rewrite.instrument`.
        """
        _require_names(names)
        return taps.patch(target, names)


def _require_names(names: tuple[object, ...]) -> None:
    if names and all(isinstance(name, str) for name in names):
        return
    if names and callable(names[0]):
        given = getattr(names[0], "__qualname__", repr(names[0]))
        raise NotInstrumentableError(
            f"get_local needs to know which local to take of {given}: write @get_local('attn') "
            "above it, not @get_local."
        )
    raise TypeError(
        f"get_local takes the names of locals, such as get_local('attn'), not {names!r}."
    )


_cache = Cache()
