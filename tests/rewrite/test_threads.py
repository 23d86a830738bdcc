"""Functions that are instrumented while other threads run them."""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from visualizer.rewrite import UNBOUND, instrument

THREADS = 8
CALLS = 20_000


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def work(thread: int, number: int) -> int:
    pair = (thread, number)
    if number % 3 == 0:
        third = pair
    double = number * 2
    return double


def _run_threads(target: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=target, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _instrument_and_remove(
    stop: threading.Event, collected: list[Any], errors: list[BaseException]
) -> None:
    """Put a second instrumentation in and take it out, now as a list and now as a callback."""
    rounds = 0
    try:
        while not stop.is_set():
            sink: Any = collected if rounds % 2 else lambda *values: collected.append(values)
            with instrument(work, "number", "double", "third", "thread", sink=sink):
                stop.wait(0.001)
            rounds += 1
    except BaseException as error:
        errors.append(error)
    collected.append(rounds)


@pytest.mark.parametrize("kind", ["list", "callback"])
def test_permanent_sink_is_exact_while_another_comes_and_goes(kind: str) -> None:
    """It loses nothing and gets nothing twice; and no delivery mixes the values of two calls."""
    permanent: list[Any] = []
    collected: list[Any] = []
    errors: list[BaseException] = []

    def call_often(thread: int) -> None:
        try:
            for number in range(CALLS):
                assert work(thread, number) == number * 2
                if number % 1000 == 0:
                    time.sleep(0.001)  # so that the other gets its turn, however few cores
        except BaseException as error:
            errors.append(error)

    original = work.__code__
    stop = threading.Event()
    other = threading.Thread(target=_instrument_and_remove, args=(stop, collected, errors))
    with instrument(work, "pair", sink=permanent if kind == "list" else permanent.append):
        other.start()
        _run_threads(call_often)
        stop.set()
        other.join()
    assert errors == []
    assert work.__code__ is original
    by_thread: dict[int, list[int]] = defaultdict(list)
    for thread, number in permanent:
        by_thread[thread].append(number)
    assert dict(by_thread) == {thread: list(range(CALLS)) for thread in range(THREADS)}
    rounds = collected.pop()
    assert rounds > 5
    assert len(collected) > 100
    for number, double, third, thread in collected:
        assert double == number * 2
        assert third == ((thread, number) if number % 3 == 0 else UNBOUND)


def test_many_threads_instrument_one_function() -> None:
    """Each gets every value of its own calls, and the original comes back."""
    original = work.__code__
    errors: list[BaseException] = []

    def instrument_often(thread: int) -> None:
        try:
            for number in range(60):
                values: list[Any] = []
                with instrument(work, "pair", sink=values):
                    work(thread, number)
                assert values.count((thread, number)) == 1
        except BaseException as error:
            errors.append(error)

    _run_threads(instrument_often)
    assert errors == []
    assert work.__code__ is original
