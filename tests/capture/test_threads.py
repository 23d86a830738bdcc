"""Many threads: each call's values arrive once, and whole."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from visualizer import get_local

THREADS = 8
CALLS = 1500


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def run_in_threads(work: Callable[[int], None]) -> None:
    """Run it in all threads at once, and raise what they raise."""
    barrier, failed = threading.Barrier(THREADS), []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def make_function() -> Callable[[int, int], tuple[int, int]]:
    @get_local("q", "k", "attn")
    def attend(thread: int, call: int) -> tuple[int, int]:
        q = thread, call
        k = [thread, call]
        attn = {"thread": thread, "call": call}
        return q

    return attend


def read_rows() -> list[tuple[int, int]]:
    """Return which call each index of every variable's list is from."""
    rows = [
        get_local.cache["attend.q"],
        [tuple(k) for k in get_local.cache["attend.k"]],
        [(attn["thread"], attn["call"]) for attn in get_local.cache["attend.attn"]],
    ]
    assert rows[0] == rows[1] == rows[2]
    return rows[0]


def test_every_call_once_and_whole() -> None:
    get_local.activate()
    attend = make_function()

    def work(thread: int) -> None:
        for call in range(CALLS):
            assert attend(thread, call) == (thread, call)

    run_in_threads(work)
    found = read_rows()
    expected = {(thread, call): 1 for thread in range(THREADS) for call in range(CALLS)}
    assert Counter(found) == expected
    for thread in range(THREADS):
        calls = [call for which, call in found if which == thread]
        assert calls == sorted(calls)


def test_activating_and_deactivating_meanwhile() -> None:
    attend = make_function()
    code = attend.__code__

    def work(thread: int) -> None:
        for call in range(CALLS):
            assert attend(thread, call) == (thread, call)
            if thread == 0 and call % 10 == 0:
                get_local.is_activate = not get_local.is_activate

    run_in_threads(work)
    get_local.deactivate()
    assert attend.__code__ is code
    found = Counter(read_rows())
    assert set(found.values()) == {1}
    assert len(found) < THREADS * CALLS


def test_clearing_meanwhile_loses_nothing() -> None:
    get_local.activate()
    attend = make_function()
    lists: list[list[tuple[int, int]]] = [get_local.cache["attend.q"]]

    def work(thread: int) -> None:
        for call in range(CALLS):
            attend(thread, call)
            if thread == 0 and call % 50 == 0:
                get_local.clear()
                lists.append(get_local.cache["attend.q"])

    run_in_threads(work)
    found = Counter(entry for values in lists for entry in values)
    assert len(found) == THREADS * CALLS
    assert set(found.values()) == {1}


def test_decorating_in_threads_while_others_read_the_cache() -> None:
    get_local.activate()

    def work(thread: int) -> None:
        for number in range(100):
            namespace = {"__name__": f"module_{thread}", "get_local": get_local}
            name = f"function_{thread}_{number}"
            exec(f"@get_local('x')\ndef {name}(x): return x", namespace)
            namespace[name](number)  # type: ignore[operator]
            len(get_local.cache)
            assert get_local.cache[name] == [number]

    run_in_threads(work)
    assert len(get_local.cache) == THREADS * 100
