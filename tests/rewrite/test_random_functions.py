"""Random functions do the same with and without instrumentation, and hand over what is true.

What is true is told by a trace function, which looks at `frame.f_locals` when the function that
is not instrumented returns. `VISUALIZER_EXAMPLES=10000` tries more of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from types import FrameType, FunctionType
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from tests.rewrite.random_functions import NAMES, Source, sources
from tests.rewrite.shapes import Outcome, observe
from visualizer.errors import UnknownLocalError
from visualizer.rewrite import UNBOUND, check_locals, instrument

EXAMPLES = int(os.environ.get("VISUALIZER_EXAMPLES", "300"))
INPUTS: tuple[tuple[Any, Any], ...] = ((0, 3), (2, [1, 5]), ("text", None))
ENOUGH = 200
# Before PEP 667 what a trace function saw in `f_locals` is written back when it returns. With an
# inlined comprehension (3.12) that may be a value that the function does not have any more.
TRACING_MAY_CHANGE_LOCALS = sys.version_info < (3, 13)

Row = dict[str, str]


class _Program:
    """A random function, made anew for each run, with what it needs."""

    def __init__(self, source: Source) -> None:
        self.is_generator = source.is_generator
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.code = compile(source.text, "<random>", "exec")

    def make(self) -> FunctionType:
        """Return the function with its own globals, and 12 rounds for its while loops."""
        rounds = iter(range(12))
        namespace: dict[str, Any] = {
            "more": lambda: next(rounds, None) is not None,
            "quiet": lambda: contextlib.suppress(ValueError, TypeError),
            "plain": lambda: contextlib.nullcontext(9),
            "several": _several,
        }
        exec(self.code, namespace)
        function: FunctionType = namespace["outer"](["free"])
        return function

    def run(self, function: FunctionType, arguments: tuple[Any, Any]) -> object:
        a, b = (list(value) if isinstance(value, list) else value for value in arguments)
        return repr(_drive(function(a, b)) if self.is_generator else function(a, b))


def _several() -> Iterator[int]:
    yield 1
    yield 2
    return 3  # noqa: B901


def _drive(generator: Any) -> list[object]:
    """Resume a generator in every way until it ends."""
    log: list[object] = []
    actions = [
        lambda: next(generator),
        lambda: generator.send("sent"),
        lambda: generator.throw(ValueError("thrown")),
    ]
    for step in range(ENOUGH):
        act = actions[step % 3] if step < 8 else lambda: generator.throw(GeneratorExit())
        try:
            log.append(act())
        except StopIteration as stop:
            return [*log, "returned", stop.value]
    raise AssertionError("it does not end")


def _observed_by_tracing(
    program: _Program, arguments: tuple[Any, Any]
) -> tuple[Outcome, list[Row]]:
    """Run a function and return what it does, and its locals at its return if it returns."""
    function = program.make()
    rows: list[Row] = []

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        if frame.f_code is not function.__code__:
            return None
        if what == "return":  # also at each yield, and where an error leaves it: the last counts
            rows[:] = [{name: repr(value) for name, value in frame.f_locals.items()}]
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        outcome = observe(partial(program.run, function, arguments))
    finally:
        sys.settrace(before)
    return outcome, rows if outcome.error is None else []


def _known_names(function: FunctionType) -> tuple[str, ...]:
    known = []
    for name in NAMES:
        with contextlib.suppress(UnknownLocalError):
            check_locals(function, name)
            known.append(name)
    return tuple(known)


def _repr_of(value: object) -> str:
    return "UNBOUND" if value is UNBOUND else repr(value)


def _comparable(outcome: Any) -> Any:
    """Leave out the lines of unbound names where CPython is not sure of them.

    Python 3.11 joins STORE_FAST and LOAD_FAST into one instruction once a function has run often
    enough, and then blames the line of the store for a name that the load finds unbound.
    """
    if isinstance(outcome, Outcome):
        return outcome.result, _comparable(outcome.error)
    if not isinstance(outcome, tuple) or sys.version_info >= (3, 12):
        return outcome
    if len(outcome) == 5 and outcome[0] is UnboundLocalError:
        kind, arguments, frames, context, cause = outcome
        outcome = (kind, arguments, [name for name, _ in frames], context, cause)
    return tuple(map(_comparable, outcome))


Check = Callable[[list[Row]], None]


def _instrument(
    stack: ExitStack, function: FunctionType, names: tuple[str, ...], kind: str
) -> Check:
    """Instrument in one way; what is returned compares what was handed over."""
    delivered: list[Any] = []
    if kind == "single":
        names = names[len(names) % 2 :: 3]  # one instrumentation each: all would take long
        sinks: dict[str, list[Any]] = {name: [] for name in names}
        for name, sink in sinks.items():
            stack.enter_context(instrument(function, name, sink=sink))
    else:
        sink_for_all: Any = (
            delivered if kind == "tuple" else lambda *values: delivered.append(values)
        )
        stack.enter_context(instrument(function, *names, sink=sink_for_all))

    def check(expected: list[Row]) -> None:
        if kind == "single":
            found: Any = {name: [repr(value) for value in sink] for name, sink in sinks.items()}
            wanted: Any = {name: [row[name] for row in expected if name in row] for name in names}
        else:
            found = [tuple(map(_repr_of, values)) for values in delivered]
            wanted = [tuple(row.get(name, "UNBOUND") for name in names) for row in expected]
        assert found == wanted

    return check


@pytest.mark.filterwarnings("ignore:assigning None to unbound local")  # 3.12, when traced
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    database=None,
)
@given(
    source=sources(),
    kinds=st.lists(st.sampled_from(["single", "tuple", "callback"]), min_size=1, max_size=2),
)
def test_random_function(source: Source, kinds: list[str]) -> None:
    note(source.text)
    program = _Program(source)
    names = _known_names(program.make())
    assert set(names) >= {"a", "b", "c", "e"}
    for arguments in INPUTS:
        expected = observe(partial(program.run, program.make(), arguments))
        traced, rows = _observed_by_tracing(program, arguments)
        told_the_truth = _comparable(traced) == _comparable(expected)
        assert told_the_truth or TRACING_MAY_CHANGE_LOCALS
        event("returns" if rows else "raises")
        function = program.make()
        original = function.__code__
        with ExitStack() as stack:
            checks = [_instrument(stack, function, names, kind) for kind in kinds]
            found = observe(partial(program.run, function, arguments))
        assert _comparable(found) == _comparable(expected)
        for check in checks if told_the_truth else ():
            check(rows)
        assert function.__code__ is original
