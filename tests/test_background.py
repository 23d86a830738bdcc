"""What works in the background lets others go first, and hurries when it is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from visualizer import _background
from visualizer._background import give_way, hurry, in_background


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    found: list[float] = []
    monkeypatch.setattr(_background.time, "sleep", found.append)
    yield found


def work(seconds: float) -> None:
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        pass
    give_way()


def test_who_works_for_long_in_the_background_gives_way(slept: list[float]) -> None:
    with in_background():
        work(0.001)
        work(0.001)
        give_way()  # which has not worked since
    assert len(slept) == 2
    assert min(slept) > 0


def test_others_do_not(slept: list[float]) -> None:
    with in_background():
        thread = threading.Thread(target=work, args=(0.001,))
        thread.start()
        thread.join()
    work(0.001)
    assert not slept


def test_who_is_waited_for_hurries(slept: list[float]) -> None:
    with in_background():
        with hurry(), hurry():
            work(0.001)
        assert not slept
        work(0.001)
    assert len(slept) == 1
