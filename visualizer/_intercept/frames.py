"""Which module runs: the modules whose calls are on the stack."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from torch import nn
from torch.fx import GraphModule

__all__ = ["call_within", "find_call", "innermost_module", "modules_on_stack", "number_of"]

_CALLS = frozenset(
    getattr(nn.Module, name).__code__
    for name in ("_call_impl", "_wrapped_call_impl")
    if hasattr(nn.Module, name)
)
"""torch's own code that calls a module. No other frame's locals are read: on Python 3.11 and 3.12
that changes the dict that the program's `locals()` returned, and keeps alive what it deletes."""


def modules_on_stack(frame: FrameType | None) -> Iterator[nn.Module]:
    """Yield the modules that are being called, from the innermost outwards; one may come again."""
    is_compiled = False
    while frame is not None:
        if frame.f_code in _CALLS:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and not (
                is_compiled and isinstance(module, GraphModule)  # the graph itself, as a module
            ):
                yield module
        elif frame.f_code is _WITHIN:
            yield from frame.f_locals["modules"]
            is_compiled = True
        frame = frame.f_back


def call_within(modules: Sequence[nn.Module], function: Callable[..., Any], *args: Any) -> Any:
    """Call a function as if by modules, whose own calls are nowhere on the stack.

    Args:
        modules: The innermost first.
    """
    return function(*args)


_WITHIN = call_within.__code__


def find_call(frame: FrameType | None, is_it: Callable[[nn.Module], bool]) -> FrameType | None:
    """Return the innermost call of a module; None where it is not being called."""
    while frame is not None:
        if frame.f_code in _CALLS and is_it(frame.f_locals["self"]):
            return frame
        frame = frame.f_back
    return None


def number_of(call: FrameType) -> int:
    """Return a number that tells a call from all before and after it.

    A call that has one is marked in its frame, where a tracer alone would look: a frame can't be
    referred to weakly, and a reference would keep alive what the module is called with.
    """
    if call.f_trace_lines or id(call) not in _numbers:
        call.f_trace_lines = False
        _numbers[id(call)] = next(_count)
    return _numbers[id(call)]


_numbers: dict[int, int] = {}
"""Of calls that run, by identity; of others, too, until another one takes their place."""
_count = itertools.count()


def innermost_module(frame: FrameType | None) -> Any:
    """Return the innermost module that is being called; None outside of any."""
    return next(modules_on_stack(frame), None)
