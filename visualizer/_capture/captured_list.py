"""The list that captured values are kept in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from visualizer._capture.device_copies import copies

__all__ = ["CapturedList"]


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
