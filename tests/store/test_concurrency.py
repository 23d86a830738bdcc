"""Many at once: the bound of the queue, threads, processes that save to one path or read there."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import visualizer
from tests.store.processes import a_capture, equal, fork, reap, save_in_units, values_of
from visualizer.errors import DamagedError, StoreExistsError, StoreWriteError
from visualizer.store import Row, Store, StoreWriter, beginning, reader, writer
from visualizer.store.queue import WriteQueue, queue


@pytest.fixture(scope="module")
def old() -> Any:
    return a_capture(1)


@pytest.fixture(scope="module")
def new() -> Any:
    return a_capture(2)


def row(number: int) -> Row:
    return Row(kind="local", value=np.full(100, number / 3), variable=f"v{number}", function="f")


class Gate:
    """A job that is at work until it is let go."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.began.set()
        assert self.may_end.wait(60)


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Begin something in a thread; return it, and what it will have returned or raised."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_the_caller_waits_at_the_bound_only() -> None:
    made, gate, done = WriteQueue(max_bytes=100), Gate(), []
    made.submit(60, gate)
    made.submit(30, lambda: done.append("b"))
    made.submit(10, lambda: done.append("c"))  # just at the bound: did not wait
    thread, found = in_thread(lambda: made.submit(1, lambda: done.append("d")))
    assert gate.began.wait(60)
    waiting = made._changed
    while not (waiting._waiters or found):  # type: ignore[attr-defined]
        pass
    assert not found
    gate.may_end.set()
    thread.join(60)
    found[0].result(60)
    assert done == ["b", "c", "d"]
    assert made._waiting == 0


def test_a_single_item_that_is_larger_than_the_bound_passes() -> None:
    made, gate = WriteQueue(max_bytes=10), Gate()
    first = made.submit(1000, gate)
    thread, found = in_thread(lambda: made.submit(1000, lambda: None))
    gate.may_end.set()
    first.result(60)
    thread.join(60)
    found[0].result(60)


def test_a_bound_of_its_own() -> None:
    made, gate = WriteQueue(max_bytes=10**9), Gate()
    made.submit(60, gate)
    thread, found = in_thread(lambda: made.submit(50, lambda: None, max_bytes=100))
    while not (made._changed._waiters or found):  # type: ignore[attr-defined]
        pass
    assert not found
    gate.may_end.set()
    thread.join(60)
    found[0].result(60)


def test_jobs_that_raise_take_no_room() -> None:
    made = WriteQueue(max_bytes=10)

    def fail() -> None:
        raise ValueError("of the job")

    for _ in range(5):
        with pytest.raises(ValueError, match="of the job"):
            made.submit(10, fail).result(60)


def test_jobs_are_done_in_their_order() -> None:
    made, done = WriteQueue(max_bytes=50), []
    for number in range(500):
        last = made.submit(7, lambda number=number: done.append(number))
    last.result(60)
    assert done == list(range(500))


def test_what_waits_to_be_written_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "UNIT_BYTES", 800)
    commit, most, held = writer.commit, [], []

    def counted(*args: Any) -> Any:
        most.append(queue._waiting)
        held.append(sum(ref.piece.nbytes for ref in args[3].refs if ref.piece is not None))
        return commit(*args)

    monkeypatch.setattr(writer, "commit", counted)
    with StoreWriter(tmp_path / "store", is_in_background=True, max_bytes=2000) as made:
        for number in range(50):
            made.add(row(number))
    assert max(most) <= 2000
    assert set(held) == {800, 0}
    store = Store(tmp_path / "store")
    assert [store.read(each)[0] for each in store.rows] == [number / 3 for number in range(50)]


def test_threads_that_save_at_once(old: Any, tmp_path: Path) -> None:
    expected = values_of(old)
    barrier = threading.Barrier(6)

    def save(number: int) -> None:
        barrier.wait(60)
        saving = old.save(tmp_path / str(number), background=bool(number % 2))
        saving.wait()

    made = [in_thread(lambda number=number: save(number)) for number in range(6)]
    for thread, found in made:
        thread.join(60)
        assert found == [None]
    for number in range(6):
        assert visualizer.verify(tmp_path / str(number)).ok
        assert equal(values_of(visualizer.load(tmp_path / str(number))), expected)


@pytest.mark.parametrize("overwrite", [False, True])
def test_threads_that_save_to_one_path(overwrite: bool, old: Any, new: Any, tmp_path: Path) -> None:
    path = tmp_path / "store"
    if overwrite:
        old.save(path)
    barrier = threading.Barrier(6)

    def save() -> None:
        barrier.wait(60)
        new.save(path, overwrite=overwrite)

    made = [in_thread(save) for _ in range(6)]
    for thread, _ in made:
        thread.join(60)
    ends = [found[0] for _, found in made]
    errors = [error for error in ends if error is not None]
    assert len(errors) < 6
    assert overwrite or len(errors) == 5
    assert {type(error) for error in errors} <= {StoreExistsError, StoreWriteError}
    for error in errors:
        assert "holds a store already" in str(error) or "somebody else" in str(error)
    assert equal(values_of(visualizer.load(path)), values_of(new))
    report = visualizer.verify(path)
    assert report.ok
    assert report.is_whole
    assert os.listdir(path / "tmp") == ["lock"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_processes_that_save_to_one_path(
    overwrite: bool, old: Any, new: Any, tmp_path: Path
) -> None:
    path, expected = tmp_path / "store", values_of(new)
    for round in range(8):
        if overwrite:
            old.save(path, overwrite=round > 0)
        else:
            path = tmp_path / f"store{round}"
        ready, begin = os.pipe()
        going, go = os.pipe()

        def work() -> None:
            os.close(go)
            os.write(begin, b".")
            os.read(going, 1)  # returns where the parent has closed it, for all at once
            try:
                save_in_units(new, path, overwrite=overwrite)
            except (StoreExistsError, StoreWriteError) as error:
                said = str(error)
                print(said)
                os._exit(7 if "holds a store" in said or "somebody else" in said else 8)

        pids = [fork(work) for _ in range(4)]
        for _ in pids:
            os.read(ready, 1)
        os.close(go)
        codes = [reap(pid) for pid in pids]
        for descriptor in (ready, begin, going):
            os.close(descriptor)
        assert set(codes) <= {0, 7}, codes
        assert codes.count(0) >= 1
        assert overwrite or codes.count(0) == 1
        assert visualizer.verify(path).ok
        assert Store(path).is_whole
        assert equal(values_of(visualizer.load(path)), expected)
        assert len(list((path / "index").iterdir())) == len(Store(path).units)


def test_who_comes_when_another_is_done_begins_behind_it(
    old: Any, new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One overwrites between another's look at the store and its lock."""
    path = tmp_path / "store"
    old.save(path)
    own = beginning._own

    def slow_own(layout: Any) -> Any:
        monkeypatch.setattr(beginning, "_own", own)
        assert reap(fork(lambda: new.save(path, overwrite=True))) == 0
        return own(layout)

    monkeypatch.setattr(beginning, "_own", slow_own)
    made = StoreWriter(path, overwrite=True)
    made.add(row(1))
    made._write_unit(is_last=False)  # and is cut off here
    made.abandon()
    assert visualizer.verify(path).ok
    assert Store(path).is_whole
    assert equal(values_of(visualizer.load(path)), values_of(new))


def test_one_that_saved_meanwhile_is_not_overwritten(
    old: Any, new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    own = beginning._own

    def slow_own(layout: Any) -> Any:
        monkeypatch.setattr(beginning, "_own", own)
        assert reap(fork(lambda: new.save(path))) == 0
        return own(layout)

    monkeypatch.setattr(beginning, "_own", slow_own)
    with pytest.raises(StoreExistsError, match="holds a store already"):
        old.save(path)
    assert equal(values_of(visualizer.load(path)), values_of(new))
    old.save(path, overwrite=True)  # the lock is free again


def test_what_is_saved_over_while_it_is_saved(old: Any, new: Any, tmp_path: Path) -> None:
    gate = Gate()
    queue.submit(0, gate)
    saving = old.save(tmp_path / "store", background=True)
    with pytest.raises(StoreWriteError, match=r"somebody else, in this process.*\.wait\(\)"):
        new.save(tmp_path / "store", overwrite=True)
    gate.may_end.set()
    saving.wait()
    new.save(tmp_path / "store", overwrite=True)
    assert equal(values_of(visualizer.load(tmp_path / "store")), values_of(new))


def test_who_reads_what_another_process_overwrites_is_told(
    old: Any, new: Any, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    old.save(path)
    loaded = visualizer.load(path)
    before = loaded.modules["blocks.0.mlp"][0].value
    assert reap(fork(lambda: new.save(path, overwrite=True))) == 0
    assert np.array_equal(before, old.modules["blocks.0.mlp"][0].value)
    with pytest.raises(DamagedError, match="was overwritten after it was loaded.*load it again"):
        loaded.modules["blocks.0.mlp"][0].value
    with pytest.raises(DamagedError, match="was overwritten after it was loaded"):
        np.asarray(loaded.attention[0])
    assert equal(values_of(visualizer.load(path)), values_of(new))


@pytest.mark.parametrize("function", [visualizer.load, visualizer.verify])
def test_a_store_that_is_replaced_while_it_is_opened(
    function: Callable[[Path], Any],
    old: Any,
    new: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    path = tmp_path / "store"
    old.save(path)
    parse = reader.parse_index

    def replaced_first(*args: Any) -> Any:
        monkeypatch.setattr(reader, "parse_index", parse)
        new.save(path, overwrite=True)
        return parse(*args)

    monkeypatch.setattr(reader, "parse_index", replaced_first)
    found = function(path)
    assert not recwarn.list
    if function is visualizer.load:
        assert equal(values_of(found), values_of(new))
    else:
        assert found.ok
        assert found.is_whole


def test_a_store_that_is_replaced_while_it_is_verified(
    old: Any, new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    old.save(path)
    module = sys.modules["visualizer.store.verify"]  # visualizer.store.verify is the function
    hash_slices = module.hash_slices

    def replaced_first(*args: Any) -> Any:
        monkeypatch.setattr(module, "hash_slices", hash_slices)
        new.save(path, overwrite=True)
        return hash_slices(*args)

    monkeypatch.setattr(module, "hash_slices", replaced_first)
    report = visualizer.verify(path, quarantine=True)
    assert report.ok
    assert not (path / "quarantine").exists()


def test_reading_and_overwriting_at_once(old: Any, new: Any, tmp_path: Path) -> None:
    path = tmp_path / "store"
    old.save(path)

    def work() -> None:
        for number in range(20):
            (new, old)[number % 2].save(path, overwrite=True)

    pid, seen = fork(work), 0
    ends = [values_of(old), values_of(new)]
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        loaded = visualizer.load(path)
        try:
            found = values_of(loaded)
        except DamagedError as error:
            assert "was overwritten after it was loaded" in str(error)
            continue
        assert equal(found, ends[0]) or equal(found, ends[1])
        seen += 1
    assert equal(values_of(visualizer.load(path)), ends[0])


def test_loaded_values_are_read_by_threads_at_once(old: Any, tmp_path: Path) -> None:
    old.save(tmp_path / "store")
    loaded = visualizer.load(tmp_path / "store")
    expected = values_of(old)
    made = [in_thread(lambda: values_of(loaded)) for _ in range(6)]
    for thread, found in made:
        thread.join(60)
        assert equal(found[0], expected)
