"""Time contenders against each other, in one run, round by round.

Each round times every contender once, in rotated order, so that a busy or throttled machine
slows all of them alike. A contender's figure is its fastest round: noise only ever adds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from types import FunctionType
from typing import Any, TypeVar

__all__ = ["Contender", "Timing", "emptying", "gc_off", "own_code", "rotated", "time_contenders"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to call something, timed as `call(argument)`.

    Attributes:
        name: What it is called in the results.
        call: What is called.
        argument: What it is called with.
        base: The contender whose time is taken off, so that what it adds remains.
        empty: Drops what its calls have kept and says how many values that was; not timed.
        values_per_call: How many values each call has to keep.
        around: A context to be timed in, such as an installed trace function.
    """

    name: str
    call: Callable[[Any], object]
    argument: Any
    base: str | None = None
    empty: Callable[[], int] = lambda: 0
    values_per_call: int = 0
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True, slots=True)
class Timing:
    """The rounds of one contender, in nanoseconds a call."""

    rounds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.rounds)

    @property
    def spread(self) -> float:
        """How far the median round lies above the best one."""
        return statistics.median(self.rounds) - self.best


def time_contenders(
    make: Callable[[ExitStack], list[Contender]], *, rounds: int, calls: int
) -> tuple[list[Contender], dict[str, Timing]]:
    """Time every contender `rounds` times, `calls` calls each.

    They are made anew ten times in between: where a code object happens to lie in memory can
    cost or save it 20 % for as long as it lives, and its best place is what compares.

    Args:
        make: Makes the contenders; what it installs is removed with the stack.
        rounds: How many rounds, over all makes.
        calls: How many calls in each.
    Raises:
        RuntimeError: A contender did not keep the values that it should have: its figure would
            be that of something else.
    """
    found: dict[str, list[float]] = {}
    makes = min(10, rounds)
    for number in range(makes):
        with ExitStack() as stack:
            contenders = make(stack)
            share = rounds // makes + (number < rounds % makes)
            for name, times in _time_these(contenders, share, calls).items():
                found.setdefault(name, []).extend(times)
    return contenders, {name: Timing(tuple(times)) for name, times in found.items()}


def _time_these(contenders: Sequence[Contender], rounds: int, calls: int) -> dict[str, list[float]]:
    loops = {contender.name: own_code(_loop) for contender in contenders}
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    with gc_off():
        for number in range(rounds + 1):
            for contender in rotated(contenders, number):
                elapsed = _time_once(contender, loops[contender.name], calls)
                if number:  # the first round warms up
                    found[contender.name].append(elapsed / calls)
    return found


def rotated(items: Sequence[T], number: int) -> Iterator[T]:
    """Yield the items, beginning with another one for each number."""
    for position in range(len(items)):
        yield items[(number + position) % len(items)]


def own_code(function: Callable[..., Any], name: str | None = None) -> FunctionType:
    """Copy a function together with its code object.

    The interpreter specialises a code object for what it has seen there: contenders that shared
    one would be timed in each other's traces.
    """
    assert isinstance(function, FunctionType)
    name = name or function.__name__
    copy = FunctionType(function.__code__.replace(), function.__globals__, name)
    copy.__qualname__ = name
    return copy


def emptying(values: list[object]) -> Callable[[], int]:
    """Return what drops the values of a list and counts them."""

    def empty() -> int:
        count = len(values)
        values.clear()
        return count

    return empty


@contextmanager
def gc_off() -> Iterator[None]:
    """Collect garbage now and not within."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _time_once(contender: Contender, loop: Callable[..., int], calls: int) -> int:
    with contender.around():
        loop(contender.call, contender.argument, repeat(None, calls // 10))
        contender.empty()
        elapsed = loop(contender.call, contender.argument, repeat(None, calls))
    kept, expected = contender.empty(), contender.values_per_call * calls
    if kept != expected:
        raise RuntimeError(
            f"{contender.name!r} kept {kept} values of {calls} calls instead of {expected}; its "
            "time would mean nothing."
        )
    return elapsed


def _loop(call: Callable[[Any], object], argument: Any, times: Iterator[None]) -> int:
    start = time.perf_counter_ns()
    for _ in times:
        call(argument)
    return time.perf_counter_ns() - start
