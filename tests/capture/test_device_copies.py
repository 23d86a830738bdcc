"""The bookkeeping of copies from a GPU, with a GPU that is only played."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest

from visualizer._capture import captured_list, device_copies
from visualizer._capture.device_copies import DeviceCopies

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")


class Staged:
    """Pinned memory: holds nothing that may be read before the event was waited for."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.memory = np.full_like(value, 99)

    def numpy(self) -> Any:
        return self.memory


class Event:
    """What is waited for; then the copy has arrived."""

    def __init__(self, staged: Staged) -> None:
        self.staged = staged
        self.waited = 0
        self.entered = threading.Event()
        self.may_go = threading.Event()
        self.may_go.set()

    def synchronize(self) -> None:
        self.entered.set()
        assert self.may_go.wait(timeout=30)
        self.waited += 1
        self.staged.memory[...] = self.staged.value


class Played(DeviceCopies):
    """Starts copies whose events are kept, to look at."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.events: list[Event] = []

    def _start(self, torch: Any, tensor: Any) -> tuple[Any, Any]:
        staged = Staged(tensor)
        self.events.append(Event(staged))
        return staged, self.events[-1]

    def fetch_values(self, *values: int) -> list[Any]:
        """Fetch arrays of 100 bytes that hold these values."""
        return [self.fetch(None, np.full(100, value, np.uint8)) for value in values]

    def waited(self) -> list[int]:
        return [event.waited for event in self.events]


def test_nothing_is_waited_for_before_somebody_reads() -> None:
    copies = Played()
    arrays = copies.fetch_values(1, 2)
    assert copies.waited() == [0, 0]
    copies.wait()
    assert copies.waited() == [1, 1]
    assert [set(array.tolist()) for array in arrays] == [{1}, {2}]


def test_shape_and_type_are_the_values() -> None:
    copies = Played()
    value = np.arange(6, dtype=np.float16).reshape(2, 3)
    array = copies.fetch(None, value)
    copies.wait()
    np.testing.assert_array_equal(array, value)
    assert array.dtype == np.float16
    assert array.flags.owndata
    assert array.flags.writeable


def test_waiting_again_waits_for_nothing() -> None:
    copies = Played()
    copies.fetch_values(1)
    copies.wait()
    copies.wait()
    assert copies.waited() == [1]
    assert copies._bytes == 0
    assert not copies._on_their_way


def test_beyond_the_bound_the_oldest_are_waited_for() -> None:
    copies = Played(max_bytes=300)
    arrays = copies.fetch_values(1, 2, 3)
    assert copies.waited() == [0, 0, 0]
    arrays += copies.fetch_values(4, 5)
    assert copies.waited() == [1, 1, 0, 0, 0]
    assert copies._bytes == 300
    assert [array[0] for array in arrays[:2]] == [1, 2]
    copies.wait()
    assert [array[0] for array in arrays] == [1, 2, 3, 4, 5]


def test_a_copy_that_is_larger_than_the_bound_is_waited_for_at_once() -> None:
    copies = Played(max_bytes=50)
    (array,) = copies.fetch_values(7)
    assert copies.waited() == [1]
    assert array[0] == 7
    assert copies._bytes == 0


def test_the_bound_is_256_mebibytes() -> None:
    assert DeviceCopies()._max_bytes == 256 * 2**20


def test_pinned_memory_is_let_go() -> None:
    copies = Played()
    copies.fetch_values(1)
    staged = weakref.ref(copies.events[0].staged)
    copies.wait()
    copies.events.clear()
    assert staged() is None


def read_while_another_waits(copies: Played, array: Any) -> list[int]:
    """Let one thread wait, hold it within the event, and read in a second thread meanwhile."""
    (event,) = copies.events
    event.may_go.clear()
    waiting = threading.Thread(target=copies.wait)
    waiting.start()
    assert event.entered.wait(timeout=30)
    seen: list[int] = []

    def read() -> None:
        copies.wait()
        seen.append(int(array[0]))

    reading = threading.Thread(target=read)
    reading.start()
    reading.join(timeout=0.2)
    event.may_go.set()
    for thread in (waiting, reading):
        thread.join(timeout=30)
    return seen


def test_a_second_reader_waits_for_what_a_first_is_waiting_for() -> None:
    copies = Played()
    (array,) = copies.fetch_values(7)
    array[...] = 0
    assert read_while_another_waits(copies, array) == [7]


def test_an_event_that_fails_is_not_forgotten() -> None:
    copies = Played()
    copies.fetch_values(1)

    def fail() -> None:
        raise RuntimeError("CUDA error")

    copies.events[0].synchronize = fail  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="CUDA error"):
            copies.wait()


READS = {
    "index": lambda values: values[0],
    "slice": lambda values: values[:],
    "iteration": list,
    "reversed": lambda values: list(reversed(values)),
    "comparison": lambda values: values == [1],
    "repr": repr,
    "pop": lambda values: values.pop(),
    "copy": lambda values: values.copy(),
    "sum of lists": lambda values: values + [],
    "product": lambda values: values * 2,
    "in": lambda values: 7 in values,
    "index of": lambda values: values.index(7),
    "stack": lambda values: np.stack(values),
    "star": lambda values: [*values],
    "tuple": tuple,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_way_of_reading_a_list_waits(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = Played()
    for module in (device_copies, captured_list):
        monkeypatch.setattr(module, "copies", copies)
    values = captured_list.CapturedList()
    values.append(copies.fetch(None, np.array(7)))
    assert copies.waited() == [0]
    len(values)
    assert copies.waited() == [0]
    read(values)
    assert copies.waited() == [1]
