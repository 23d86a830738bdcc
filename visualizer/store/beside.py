"""Work that a second thread does, while this one goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

__all__ = ["beside"]


class _Thread:
    """A thread that is kept: to start one takes as long as to hash some megabytes."""

    def __init__(self) -> None:
        self.executor: ThreadPoolExecutor | None = None

    def forget(self) -> None:
        """Give it up: a forked process has none."""
        self.executor = None


_thread = _Thread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_thread.forget)


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Have something done by a thread; leaving the block waits for it, and raises what it raised.

    Args:
        work: It. It must not need the interpreter's lock, or nothing is gained.
    """
    if _thread.executor is None:
        _thread.executor = ThreadPoolExecutor(1, "visualizer-store-beside")
    try:
        future = _thread.executor.submit(work)
    except RuntimeError:  # the interpreter is on its way out: there are no threads any more
        yield
        work()
        return
    try:
        yield
    finally:
        future.result()
