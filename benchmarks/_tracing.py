"""Contenders that watch a function through the interpreter's own hooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType, FrameType
from typing import Any

from benchmarks._timing import Contender, emptying, own_code

__all__ = ["monitored", "traced"]


def traced(function: Callable[[Any], object], argument: Any, base: str) -> Contender:
    """Return a function whose `y` a trace function takes: as cheap as tracing can be."""
    target, values = own_code(function), list[object]()
    code = target.__code__

    def local_trace(frame: FrameType, event: str, detail: Any) -> Any:
        if event == "return":
            values.append(frame.f_locals["y"])
        return local_trace

    def trace(frame: FrameType, event: str, detail: Any) -> Any:
        if frame.f_code is not code:
            return None
        frame.f_trace_lines = False  # only its return is wanted
        return local_trace

    @contextmanager
    def tracing() -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)

    return Contender("sys.settrace", target, argument, base, emptying(values), 1, tracing)


def monitored(
    stack: ExitStack, function: Callable[[Any], object], argument: Any, base: str
) -> list[Contender]:
    """Return a function whose `y` sys.monitoring takes; none before Python 3.12."""
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is None:
        return []
    target, values = own_code(function), list[object]()

    def on_return(code: CodeType, offset: int, result: object) -> None:
        values.append(sys._getframe(1).f_locals["y"])

    tool, event = monitoring.PROFILER_ID, monitoring.events.PY_RETURN
    monitoring.use_tool_id(tool, "visualizer benchmarks")
    stack.callback(monitoring.free_tool_id, tool)
    stack.callback(monitoring.register_callback, tool, event, None)
    monitoring.register_callback(tool, event, on_return)
    monitoring.set_local_events(tool, target.__code__, event)
    stack.callback(monitoring.set_local_events, tool, target.__code__, 0)
    return [
        Contender("sys.monitoring", target, argument, base, emptying(values), values_per_call=1)
    ]
