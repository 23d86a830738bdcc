"""Work behind the program's back, which lets the program go first."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["give_way", "hurry", "in_background"]

_AT_ONCE_S = 1e-4
"""For how long a thread may compute before others have their turn."""
_TURN_S = 2e-4
"""How long that is: longer than a thread takes to wake up."""


class _Thread(threading.local):
    is_behind = False
    began = 0.0


class _Waiting:
    """How many threads wait for what is done in the background."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.Lock()


_thread, _waiting = _Thread(), _Waiting()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_waiting.__init__)  # type: ignore[misc]


@contextmanager
def in_background() -> Iterator[None]:
    """Let what this thread does in the block give way to other threads."""
    _thread.is_behind, _thread.began = True, time.perf_counter()
    try:
        yield
    finally:
        _thread.is_behind = False


@contextmanager
def hurry() -> Iterator[None]:
    """Wait in the block for what is done in the background, which gives way to nobody then."""
    with _waiting.lock:
        _waiting.count += 1
    try:
        yield
    finally:
        with _waiting.lock:
            _waiting.count -= 1


def give_way() -> None:
    """Let others have the interpreter's lock for a moment, if this thread is in the background.

    What computes in Python for long is to call this every few dozens of microseconds. Who wants the
    lock meanwhile, as a model does after each of its operations, is kept from its work, and a lock
    that is free only for a moment is taken again before who waits for it has woken up.
    """
    if not _thread.is_behind or _waiting.count:
        return
    if time.perf_counter() - _thread.began > _AT_ONCE_S:
        time.sleep(_TURN_S)
        _thread.began = time.perf_counter()
