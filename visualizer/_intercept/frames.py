"""Which module runs: the first argument of the functions on the stack."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch import nn

__all__ = ["innermost_module", "modules_on_stack"]


def modules_on_stack(frame: FrameType | None) -> Iterator[nn.Module]:
    """Yield the modules whose code runs, from the innermost outwards; one may come again.

    A method's module is its first argument, and so it is for the functions of transformers that
    compute attention for a module.
    """
    while frame is not None:
        code = frame.f_code
        if code.co_argcount:
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, nn.Module):
                yield first
        frame = frame.f_back


def innermost_module(frame: FrameType | None) -> Any:
    """Return the innermost module whose code runs; None outside of any."""
    return next(modules_on_stack(frame), None)
