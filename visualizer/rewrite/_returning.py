"""A function that returns its locals beside its result."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, ParamSpec, TypeVar

from visualizer.errors import NotInstrumentableError
from visualizer.rewrite._instrument import instrument, uninstrumented
from visualizer.rewrite._target import describe

__all__ = ["returning_locals"]

P = ParamSpec("P")
R = TypeVar("R")


class _Values(threading.local):
    """Values that calls of this thread handed over and nobody has fetched yet."""

    def __init__(self) -> None:
        self.stack: list[tuple[Any, ...]] = []


def returning_locals(
    function: Callable[P, R], *names: str
) -> Callable[P, tuple[R, dict[str, Any]]]:
    """Make a function that returns `(result, {name: final value})`; the given one is untouched.

    Args:
        function: A plain function or a bound method.
        *names: Its locals. One that is unbound at the return comes out as `UNBOUND`.
    Raises:
        UnknownLocalError: The code never has a local of that name.
        NotInstrumentableError: Not a plain function; or a generator or coroutine, whose call
            returns before its code runs.

    Example:
        >>> def scale(x):
        ...     factor = x * 2
        ...     return factor + 1
        >>> returning_locals(scale, "factor")(20)
        (41, {'factor': 40})
    """
    plain = function.__func__ if isinstance(function, MethodType) else function
    _require_plain(plain, function)
    assert isinstance(plain, FunctionType)
    copy = _copy(plain)
    values = _Values()
    # The handle is not needed: the instrumentation lives and dies with the copy.
    instrument(copy, *names, sink=lambda *delivered: values.stack.append(delivered))
    call: Callable[P, R] = (
        MethodType(copy, function.__self__) if isinstance(function, MethodType) else copy
    )

    @functools.wraps(function)
    def with_locals(*args: P.args, **kwargs: P.kwargs) -> tuple[R, dict[str, Any]]:
        waiting = len(values.stack)
        try:
            result = call(*args, **kwargs)
            return result, dict(zip(names, values.stack[-1], strict=True))
        finally:
            del values.stack[waiting:]

    return with_locals


def _require_plain(plain: object, given: object) -> None:
    name = getattr(given, "__qualname__", repr(given))
    if not isinstance(plain, FunctionType):
        raise NotInstrumentableError(
            f"returning_locals() takes a Python function, and {name} is {describe(plain)}."
        )
    if hasattr(plain, "__wrapped__"):
        raise NotInstrumentableError(
            f"{name} is a wrapper around another function; pass the inner one "
            f"({name}.__wrapped__), or use instrument(), which looks through wrappers."
        )
    if (
        inspect.isgeneratorfunction(plain)
        or inspect.iscoroutinefunction(plain)
        or inspect.isasyncgenfunction(plain)
    ):
        raise NotInstrumentableError(
            f"{name} is a generator or coroutine: calling it returns before its code has run. "
            "Use instrument(), which hands its locals over when it ends."
        )


def _copy(function: FunctionType) -> FunctionType:
    copy = FunctionType(
        uninstrumented(function),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__ = function.__qualname__
    copy.__module__ = function.__module__
    return copy
