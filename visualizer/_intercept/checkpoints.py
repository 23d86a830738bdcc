"""Reentrant checkpoints: what ran without autograd is run again, with it, in the backward pass."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from torch.utils.checkpoint import CheckpointFunction

__all__ = ["Checkpoints"]

_CODES = (CheckpointFunction.forward.__code__, CheckpointFunction.backward.__code__)

Kind = TypeVar("Kind")


@dataclass(slots=True)
class _Calls(Generic[Kind]):
    """What was called in a checkpointed part, in order.

    Attributes:
        made: In the forward pass.
        task: The backward pass that runs it again.
        count: How many it has made so far.
    """

    made: list[Kind | None] = field(default_factory=list)
    task: int = -1
    count: int = 0


class Checkpoints(Generic[Kind]):
    """Tells which call of the forward pass is made again.

    A checkpointed part makes the same calls in the same order, and torch hands both its forward and
    its backward function the same object.
    """

    def __init__(self) -> None:
        self._calls: weakref.WeakKeyDictionary[Any, _Calls[Kind]] = weakref.WeakKeyDictionary()

    def note(self, call: Kind | None) -> bool:
        """Note a call of the forward pass; return whether it is made in a checkpointed part."""
        context = _find_context(sys._getframe(1))
        if context is None:
            return False
        self._calls.setdefault(context, _Calls()).made.append(call)
        return True

    def find(self) -> Kind | None:
        """Return the call that is made again in this backward pass, if it was noted."""
        context = _find_context(sys._getframe(1))
        calls = None if context is None else self._calls.get(context)
        if calls is None:
            return None
        task = torch._C._current_graph_task_id()
        calls.count = calls.count + 1 if calls.task == task else 1
        calls.task = task
        return calls.made[calls.count - 1] if calls.count <= len(calls.made) else None


def _find_context(frame: FrameType | None) -> Any:
    """Return what stands for the innermost checkpointed part that runs; None outside of any."""
    while frame is not None:
        if frame.f_code in _CODES:
            return frame.f_locals["ctx"]
        frame = frame.f_back
    return None
