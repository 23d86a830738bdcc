"""Forty shapes of functions that a rewrite may get wrong, each as a sample that says what is right.

A shape is made by a function that returns a `Case`: the target, and calls to make, each with the
values that the asked local has at the returns it causes. The samples are in `shapes_*.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from visualizer.rewrite import UNBOUND

__all__ = [
    "SHAPES",
    "UNBOUND",
    "Call",
    "Case",
    "Outcome",
    "Shape",
    "call",
    "compile_function",
    "finish",
    "observe",
    "shape",
]


@dataclass(frozen=True, slots=True)
class Call:
    """Something to run, and what the local holds at each return that it causes, in order."""

    run: Callable[[], object]
    captured: tuple[Any, ...]


class Case:
    """A target and the calls to make; `function` is what has the code, if not the target."""

    def __init__(self, target: Any, *calls: Call, function: Any = None) -> None:
        self.target = target
        self.calls = calls
        self.function = function or target


@dataclass(frozen=True, slots=True)
class Shape:
    """A sample: its number in the list of forty, what it is, and the local that is asked for.

    One whose code is so long that instrumenting it takes seconds says so.
    """

    number: int
    title: str
    name: str
    make: Callable[[], Case]
    since: tuple[int, int] = (3, 11)
    is_long: bool = False

    def case(self) -> Case:
        """Make it anew; where this Python can't parse it, skip the test."""
        if sys.version_info < self.since:
            pytest.skip(f"its syntax is new in Python {self.since[0]}.{self.since[1]}")
        return self.make()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call did, as its caller sees it.

    Attributes:
        result: What it returned.
        error: `(type, args, frames)` of what it raised, and the same of its context and cause;
            frames are `(function, line)` from the caller's to the one that raised.
    """

    result: object = None
    error: tuple[Any, ...] | None = None


SHAPES: list[Shape] = []


def shape(
    number: int,
    title: str,
    name: str,
    since: tuple[int, int] = (3, 11),
    *,
    is_long: bool = False,
) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a function that makes a case as a shape."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        SHAPES.append(Shape(number, title, name, make, since, is_long))
        return make

    return register


def call(run: Callable[[], object], *captured: Any) -> Call:
    """Say what a call captures."""
    return Call(run, captured)


def observe(run: Callable[[], object]) -> Outcome:
    """Run something and note what comes out."""
    try:
        return Outcome(result=run())
    except BaseException as error:
        return Outcome(error=_describe(error))


def _describe(error: BaseException | None) -> tuple[Any, ...] | None:
    if error is None:
        return None
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code.co_qualname, traceback.tb_lineno))
        traceback = traceback.tb_next
    return (
        type(error),
        tuple(map(_plain, error.args)),
        frames,
        _describe(error.__context__),
        _describe(error.__cause__),
    )


def _plain(argument: object) -> object:
    """Exceptions compare by identity: describe those inside a group, or anywhere else."""
    if isinstance(argument, (list, tuple)):
        return tuple(map(_plain, argument))
    return _describe(argument) if isinstance(argument, BaseException) else repr(argument)


def finish(coroutine: Any) -> Any:
    """Run a coroutine that waits for nothing, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the coroutine waits for something")


def compile_function(source: str, name: str, **namespace: Any) -> Any:
    """Compile source text and return what it calls `name`."""
    exec(compile(source, "<shape>", "exec"), namespace)
    return namespace[name]
