"""Writing in the background: one thread, and a bound on the bytes that wait for it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import util

from visualizer._background import hurry, in_background

__all__ = ["WriteQueue", "at_exit", "queue"]


class WriteQueue:
    """Jobs that a thread does one after the other.

    At a normal exit of the interpreter, what waits is done first.

    Args:
        max_bytes: How many bytes may wait. A job that would pass that is waited for, unless it is
            the only one.
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        self.max_bytes = max_bytes
        self._waiting = 0
        self._changed = threading.Condition()
        self._executor: ThreadPoolExecutor | None = None

    def submit(
        self, nbytes: int, job: Callable[[], None], *, max_bytes: int | None = None
    ) -> Future[None]:
        """Have a job done; wait only where too many bytes wait already.

        Args:
            nbytes: The bytes that it keeps in memory.
            job: It.
            max_bytes: Another bound for this one.
        """
        most = self.max_bytes if max_bytes is None else max_bytes
        with self._changed:
            if self._waiting and self._waiting + nbytes > most:
                with hurry():
                    self._changed.wait_for(
                        lambda: not self._waiting or self._waiting + nbytes <= most
                    )
            self._waiting += nbytes
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, "visualizer-store")
            executor = self._executor

        def work() -> None:
            try:
                with in_background():
                    job()
            finally:
                with self._changed:
                    self._waiting -= nbytes
                    self._changed.notify_all()

        try:
            return executor.submit(work)
        except RuntimeError:  # the interpreter is on its way out: there are no threads any more
            return _do_now(work)

    def forget(self) -> None:
        """Give up what waits: a forked process has the memory, and not the thread."""
        self.__init__(self.max_bytes)  # type: ignore[misc]


def _do_now(work: Callable[[], None]) -> Future[None]:
    future: Future[None] = Future()
    try:
        work()
        future.set_result(None)
    except BaseException as error:
        future.set_exception(error)
    return future


queue = WriteQueue()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=queue.forget)


_at_exit: list[Callable[[], None]] = []


def at_exit(function: Callable[[], None]) -> None:
    """Have something done at a normal exit; what it raises is told on stderr."""
    _at_exit.append(function)


def _run_at_exit() -> None:
    for function in _at_exit:
        try:
            function()
        except Exception as error:
            print(f"visualizer: {error}", file=sys.stderr)


def _register(_: object = None) -> None:
    """Register with the children of multiprocessing, too, which know nothing of atexit."""
    util.Finalize(None, _run_at_exit, exitpriority=0)


atexit.register(_run_at_exit)
_register()
util.register_after_fork(_run_at_exit, _register)
