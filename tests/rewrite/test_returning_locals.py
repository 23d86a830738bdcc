"""`returning_locals`: a function that returns its locals, and leaves the given one alone."""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from visualizer.errors import NotInstrumentableError, UnknownLocalError
from visualizer.rewrite import UNBOUND, instrument, returning_locals


def scale(x: Any, *, by: int = 2) -> Any:
    """Multiply."""
    factor = x * by
    if factor > 100:
        large = True
    return factor + 1


ORIGINAL = scale.__code__


def test_result_and_locals() -> None:
    scaled = returning_locals(scale, "factor", "x", "by", "large")
    assert scaled(20) == (41, {"factor": 40, "x": 20, "by": 2, "large": UNBOUND})
    assert scaled(20, by=6) == (121, {"factor": 120, "x": 20, "by": 6, "large": True})


def test_given_function_is_untouched() -> None:
    scaled = returning_locals(scale, "factor")
    assert scale.__code__ is ORIGINAL
    assert scale(20) == 41
    assert not hasattr(scale, "__wrapped__")
    assert (scaled.__name__, scaled.__doc__) == (scale.__name__, scale.__doc__)
    assert inspect.signature(scaled) == inspect.signature(scale)


def test_order_and_repetition_of_names() -> None:
    assert list(returning_locals(scale, "x", "factor")(1)[1]) == ["x", "factor"]
    assert returning_locals(scale, "x", "x")(1) == (3, {"x": 1})


def test_closure_and_defaults_are_shared() -> None:
    count = 0

    def f(x: int, seen: list[int] = []) -> int:  # noqa: B006
        nonlocal count
        count += x
        seen.append(x)
        return len(seen)

    counted = returning_locals(f, "count", "seen")
    assert counted(2) == (1, {"count": 2, "seen": [2]})
    assert f(3) == 2
    assert counted(4) == (3, {"count": 9, "seen": [2, 3, 4]})


def test_bound_method() -> None:
    class Base:
        def method(self, x: int) -> int:
            y = x + 1
            return y

    class Derived(Base):
        def method(self, x: int) -> int:
            y = super().method(x) * 10
            return y

    derived = Derived()
    assert returning_locals(derived.method, "y", "self")(1) == (20, {"y": 20, "self": derived})
    assert returning_locals(Derived.method, "y")(derived, 2) == (30, {"y": 30})


def test_recursion_goes_to_the_given_function() -> None:
    """The name `factorial` still means the given function, which hands nothing over."""

    def factorial(n: int) -> int:
        below = factorial(n - 1) if n else 1
        return (n or 1) * below

    assert returning_locals(factorial, "below", "n")(5) == (120, {"below": 24, "n": 5})


def test_recursion_into_itself() -> None:
    """Each level gets its own values, also where the inner call's are dropped by an error."""

    def f(n: int) -> Any:
        mine = n * 10
        inner = with_locals(n - 1) if n else None
        return mine, inner

    with_locals = returning_locals(f, "mine")
    assert with_locals(2) == (
        (20, ((10, ((0, None), {"mine": 0})), {"mine": 10})),
        {"mine": 20},
    )


def test_error_passes_and_leaves_nothing_behind() -> None:
    def f(x: int) -> float:
        y = x + 1
        return 1 / x if x < 5 else recursive(0)[0]

    recursive = returning_locals(f, "y")
    for x in (0, 7, 0):
        with pytest.raises(ZeroDivisionError):
            recursive(x)
    assert recursive(1) == (1.0, {"y": 2})


def test_values_are_not_kept() -> None:
    class Value:
        pass

    def f() -> int:
        value = Value()
        return 1

    with_value = returning_locals(f, "value")
    _, values = with_value()
    alive = weakref.ref(values["value"])
    assert alive() is not None
    del values
    gc.collect()
    assert alive() is None


def test_threads() -> None:
    """Each call returns the values of its own thread, also where others return in between."""
    barrier = threading.Barrier(8)

    def f(x: int) -> int:
        y = [x]
        if x < 800:
            barrier.wait(timeout=30)  # all eight are between their beginning and their return
        return x

    with_y = returning_locals(f, "y")

    def work(number: int) -> bool:
        calls = [number + 8 * step for step in range(5_000)]
        return all(with_y(x) == (x, {"y": [x]}) for x in calls)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))
    finally:
        sys.setswitchinterval(interval)


def test_of_an_instrumented_function() -> None:
    values: list[Any] = []
    with instrument(scale, "x", sink=values):
        scaled = returning_locals(scale, "factor")
        assert scaled(1) == (3, {"factor": 2})
        assert values == []
        scale(2)
    assert values == [2]
    assert scaled(3) == (7, {"factor": 6})


def test_instrumenting_the_given_function_afterwards() -> None:
    scaled = returning_locals(scale, "factor")
    values: list[Any] = []
    with instrument(scale, "x", sink=values):
        assert scaled(1) == (3, {"factor": 2})
        scale(5)
    assert values == [5]


def test_unknown_local() -> None:
    with pytest.raises(UnknownLocalError, match="Did you mean 'factor'"):
        returning_locals(scale, "facto")
    with pytest.raises(TypeError, match="name at least one local"):
        returning_locals(scale)


def generator() -> Iterator[int]:
    x = 1
    yield x


async def coroutine() -> None:
    x = 1


async def asynchronous_generator() -> AsyncIterator[int]:
    x = 1
    yield x


@pytest.mark.parametrize("function", [generator, coroutine, asynchronous_generator])
def test_generators_and_coroutines_are_refused(function: Any) -> None:
    with pytest.raises(NotInstrumentableError) as caught:
        returning_locals(function, "x")
    assert str(caught.value) == (
        f"{function.__name__} is a generator or coroutine: calling it returns before its code has "
        "run. Use instrument(), which hands its locals over when it ends."
    )


def test_wrapper_is_refused() -> None:
    @functools.wraps(scale)
    def wrapper(x: int) -> Any:
        return scale(x)

    with pytest.raises(NotInstrumentableError) as caught:
        returning_locals(wrapper, "x")
    assert str(caught.value) == (
        "scale is a wrapper around another function; pass the inner one (scale.__wrapped__), or "
        "use instrument(), which looks through wrappers."
    )


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (len, "len is a builtin or a function of a C extension"),
        (int, "int is a class"),
        ("json:dumps", "'json:dumps' is an object of type builtins.str"),
    ],
)
def test_what_is_no_function_is_refused(target: Any, message: str) -> None:
    with pytest.raises(NotInstrumentableError) as caught:
        returning_locals(target, "x")
    assert str(caught.value) == f"returning_locals() takes a Python function, and {message}."
