"""The engine: take the final values of any local of any Python function.

It changes a function's code object and nothing else, knows a sink and nothing else, and needs
the standard library and `bytecode` only.
"""

from __future__ import annotations

from visualizer.rewrite._instrument import (
    Instrumentation,
    check_locals,
    instrument,
    restore,
    uninstrumented,
)
from visualizer.rewrite._returning import returning_locals
from visualizer.rewrite._sink import UNBOUND, Sink

__all__ = [
    "UNBOUND",
    "Instrumentation",
    "Sink",
    "check_locals",
    "instrument",
    "restore",
    "returning_locals",
    "uninstrumented",
]
