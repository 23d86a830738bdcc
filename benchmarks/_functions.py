"""Contenders that take a local out of a function of integers. No torch needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks._timing import Contender, emptying, own_code
from benchmarks._tracing import monitored, traced
from visualizer import get_local
from visualizer.rewrite import instrument

__all__ = [
    "BARE",
    "BRANCH_LIST_SINK",
    "LIST_SINK",
    "WRAPPER",
    "function_contenders",
    "get_local_contender",
]

BARE = "bare function"
LIST_SINK = "list sink, local always bound"
BRANCH_LIST_SINK = "list sink, local of a branch, bound"
WRAPPER = "wrapper design (result and local in a tuple)"
_TAKEN, _NOT_TAKEN = "bare function, branch taken", "bare function, branch not taken"


def _always(x: int) -> int:
    y = x + 1
    return y * 2


def _on_a_branch(x: int) -> int:
    if x > 10:
        y = x + 1  # noqa: F841 - the local to be taken
    return x * 2


def _result_and_local(x: int) -> tuple[int, int]:
    y = x + 1
    return y * 2, y


def function_contenders(stack: ExitStack) -> list[Contender]:
    """Return the contenders; what they install is removed with the stack."""
    return [
        Contender(BARE, own_code(_always), 20),
        Contender(_TAKEN, own_code(_on_a_branch), 20),
        Contender(_NOT_TAKEN, own_code(_on_a_branch), 1),
        _by_hand(),
        _instrumented(stack, LIST_SINK, "y"),
        _instrumented(stack, "list sink, two names", "x", "y"),
        _on_branch(stack, BRANCH_LIST_SINK, 20, _TAKEN, values=1),
        _on_branch(stack, "list sink, local of a branch, unbound", 1, _NOT_TAKEN, values=0),
        _with_callback(stack, "callback sink, list.append", lambda values: values.append),
        _with_callback(stack, "callback sink, Python function", _python_sink),
        get_local_contender(stack, "get_local, small int", _always, 20, BARE),
        _wrapper_design(),
        traced(_always, 20, BARE),
        *monitored(stack, _always, 20, BARE),
        _inactive("get_local inactive, was active before", was_active=True),
        _inactive("get_local inactive, never active", was_active=False),
    ]


def get_local_contender(
    stack: ExitStack, name: str, function: Callable[[Any], object], argument: Any, base: str
) -> Contender:
    """Return a function that get_local takes `y` of.

    By `patch`, which installs what the decorator installs while active, so that the inactive
    contenders can be timed in the same rounds.
    """
    target = own_code(function, f"{function.__name__}_in_get_local")
    stack.enter_context(get_local.patch(target, "y"))

    def empty() -> int:
        count = len(get_local.cache[target.__qualname__])
        get_local.clear()
        return count

    return Contender(name, target, argument, base, empty, values_per_call=1)


def _by_hand() -> Contender:
    """Return what one would write: the least that keeping a value in a list costs."""
    values: list[object] = []

    def append(x: int) -> int:
        y = x + 1
        values.append(y)
        return y * 2

    return Contender("append by hand", append, 20, BARE, emptying(values), values_per_call=1)


def _wrapper_design() -> Contender:
    """Return the design to compare with: a wrapper unpacks `(result, local)` and appends."""
    target, cache = own_code(_result_and_local), {"key": list[object]()}

    @functools.wraps(target)
    def wrapper(*args: Any, **kwargs: Any) -> object:
        result, local = target(*args, **kwargs)
        cache["key"].append(local)
        return result

    return Contender(WRAPPER, wrapper, 20, BARE, emptying(cache["key"]), values_per_call=1)


def _instrumented(stack: ExitStack, name: str, *locals_: str) -> Contender:
    target, values = own_code(_always), list[object]()
    stack.enter_context(instrument(target, *locals_, sink=values))
    return Contender(name, target, 20, BARE, emptying(values), values_per_call=1)


def _on_branch(stack: ExitStack, name: str, argument: int, base: str, values: int) -> Contender:
    target, kept = own_code(_on_a_branch), list[object]()
    stack.enter_context(instrument(target, "y", sink=kept))
    return Contender(name, target, argument, base, emptying(kept), values_per_call=values)


def _with_callback(
    stack: ExitStack, name: str, sink: Callable[[list[object]], Callable[[object], None]]
) -> Contender:
    target, values = own_code(_always), list[object]()
    stack.enter_context(instrument(target, "y", sink=sink(values)))
    return Contender(name, target, 20, BARE, emptying(values), values_per_call=1)


def _python_sink(values: list[object]) -> Callable[[object], None]:
    return lambda value: values.append(value)


def _inactive(name: str, *, was_active: bool) -> Contender:
    """Return a decorated function while get_local is not active: it has to be untouched."""
    target = own_code(_always, f"inactive_{was_active}")
    code = target.__code__
    decorated = get_local("y")(target)
    if was_active:
        get_local.activate()
        get_local.deactivate()
    if decorated is not target or decorated.__code__ is not code:
        raise RuntimeError(f"{name}: the function or its code object is not the original.")
    return Contender(name, decorated, 20, BARE)
