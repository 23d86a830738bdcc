"""What is queued is written at a normal exit, whatever that looks like; what fails is told."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import visualizer
from tests.store.processes import a_capture, equal, fork, reap, values_of
from visualizer.errors import OverwrittenError, StoreExistsError, StoreWriteError
from visualizer.store import Row, Store, StoreWriter
from visualizer.store.queue import queue

ROOT = Path(__file__).parents[2]

BEGIN = """
    import os, sys, threading
    from pathlib import Path
    import numpy as np, torch
    import visualizer
    from visualizer.errors import *
    from visualizer.store import Row, Store, StoreWriter, writer
    from visualizer.store.queue import queue
    path = Path(sys.argv[1]) / "store"
    def row(number):
        value = np.full((100, 100), number / 3)
        return Row(kind="local", value=value, variable=f"v{number}", function="f")
    def take(size=64):
        layer = torch.nn.TransformerEncoderLayer(size, 4, batch_first=True).eval()
        with torch.no_grad(), visualizer.capture(layer, modules=["*"]) as captured:
            layer(torch.randn(8, 100, size))
        return captured
    def slowly(commit=writer.commit):  # so that the end of the program comes before that of it
        def waiting(*args, **kwargs):
            threading.Event().wait(0.3)
            return commit(*args, **kwargs)
        writer.commit = waiting
"""

ENDS = {
    "the end": "",
    "sys.exit": "sys.exit(0)",
    "a code": "sys.exit(3)",
    "an exception": "raise ValueError('of the program')",
    "Ctrl-C": "raise KeyboardInterrupt",
    "in a function": "def f(): sys.exit(0)\nf()",
}


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def script(*parts: str) -> str:
    return "\n".join(map(textwrap.dedent, parts))


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_what_was_not_waited_for_is_written(end: str, tmp_path: Path) -> None:
    code = """
        slowly()
        captured = take()
        for number in range(3):
            captured.save(f"{path}{number}", background=True)
        made = StoreWriter(f"{path}-open")
        behind = StoreWriter(f"{path}-behind", is_in_background=True)
        for number in range(20):
            made.add(row(number))
            behind.add(row(number))
    """
    made = run(script(BEGIN, code, end), str(tmp_path / "x"))
    (tmp_path / "x").mkdir(exist_ok=True)
    for name in ("store0", "store1", "store2", "store-open", "store-behind"):
        path = tmp_path / "x" / name
        store, report = Store(path), visualizer.verify(path)
        assert store.is_whole, made.stderr
        assert report.ok
        assert os.listdir(path / "tmp") == ["lock"]
        if "-" in name:
            assert [store.read(row)[0, 0] for row in store.rows] == [n / 3 for n in range(20)]
        else:
            assert len(visualizer.load(path).attention) == 1
    assert "visualizer:" not in made.stderr
    assert made.returncode == {"a code": 3}.get(
        next(key for key, value in ENDS.items() if value == end), made.returncode
    )


def test_an_error_at_the_end_is_told(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    code = """
        import resource
        captured = take()
        captured.save(f"{path}0", background=True).wait()
        made = [StoreWriter(f"{path}{number}") for number in (1, 2)]
        for number in range(20):
            made[0].add(row(number))
            made[1].add(row(number))
        slowly()
        captured.save(f"{path}3", background=True)
        captured.save(f"{path}4", background=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    """
    made = run(script(BEGIN, code), str(tmp_path / "x"))
    assert visualizer.verify(tmp_path / "x/store0").is_whole
    lines = [line for line in made.stderr.splitlines() if line.startswith("visualizer:")]
    for number in (1, 2, 3, 4):
        path = tmp_path / "x" / f"store{number}"
        (line,) = [line for line in lines if f"{path} " in line]
        assert "File too large" in line
        assert os.listdir(path / "tmp") == ["lock"]
    assert "Traceback" not in made.stderr


def test_stores_of_others_are_told_at_the_end(tmp_path: Path) -> None:
    code = """
        captured = take()
        gate = threading.Event()
        queue.submit(0, gate.wait)
        for number in range(4):
            captured.save(f"{path}{number}", background=True)
        if os.fork() == 0:
            for number in range(4):
                captured.save(f"{path}{number}")
            os._exit(0)
        assert os.wait()[1] == 0
        gate.set()
    """
    made = run(script(BEGIN, code), str(tmp_path / "x"))
    for number in range(4):
        said = f"visualizer: {tmp_path}/x/store{number} holds a store already"
        assert said in made.stderr
        assert visualizer.verify(tmp_path / "x" / f"store{number}").is_whole
    assert "Traceback" not in made.stderr


def test_changed_values_are_told_at_the_end(tmp_path: Path) -> None:
    code = """
        gate = threading.Event()
        queue.submit(0, gate.wait)
        made = StoreWriter(path, is_in_background=True, memory="watched")
        first = row(0)
        made.add(first)
        made.add(row(1))
        first.value[:] = 1
        gate.set()
    """
    made = run(script(BEGIN, code), str(tmp_path))
    assert "visualizer: the v0 of f, call 0 of" in made.stderr, made.stderr
    assert "were written to before they were on the disk" in made.stderr
    assert [row.variable for row in Store(tmp_path / "store").rows] == ["v1"]


def test_children_of_multiprocessing_write_what_they_queued(tmp_path: Path) -> None:
    """They end without `atexit`."""
    code = """
        import multiprocessing
        captured = take()
        def work(number):
            slowly()
            captured.save(f"{path}{number}", background=True)
            global made
            made = StoreWriter(f"{path}{number}-open")
            made.add(row(number))
        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            children = [context.Process(target=work, args=(number,)) for number in range(2)]
            [child.start() for child in children]
            [child.join() for child in children]
            assert [child.exitcode for child in children] == [0, 0]
            print("done")
    """
    made = run(script(BEGIN, code), str(tmp_path / "x"))
    assert made.stdout == "done\n", made.stderr
    for number in range(2):
        for name in (f"store{number}", f"store{number}-open"):
            report = visualizer.verify(tmp_path / "x" / name)
            assert report.ok
            assert report.is_whole


FORKED = """
    slowly()
    captured = take()
    made = StoreWriter(f"{path}-open")
    made.add(row(0))
    behind = StoreWriter(f"{path}-behind", is_in_background=True)
    behind.add(row(0))
    saving = captured.save(f"{path}-saving", background=True)
    pid = os.fork()
    if pid == 0:
        for each in (made, behind):
            try:
                each.add(row(1))
            except StoreWriteError as error:
                assert "by the process that opened it" in str(error)
            else:
                raise AssertionError("it takes values of a child")
            each.close()  # quietly: it may be a with-block that is left
            assert not os.listdir(each.path / "index"), "a child wrote"
        try:
            saving.wait()
        except StoreWriteError as error:
            assert "by the process that opened it" in str(error)
        else:
            raise AssertionError("it waits for another process")
        captured.save(f"{path}-child", background=True)
        END
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == CODE
    made.add(row(1))
    behind.add(row(1))
    made.close()
    behind.close()
    saving.wait()
    print("done")
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(0)", 0), ("raise ValueError", 1), ("os._exit(5)", 5)],
    ids=["sys.exit", "an exception", "os._exit"],
)
def test_a_fork_leaves_the_store_to_its_parent(end: str, code: int, tmp_path: Path) -> None:
    forked = FORKED.replace("END", end).replace("CODE", str(code))
    made = run(script(BEGIN, forked), str(tmp_path / "x"))
    assert made.stdout == "done\n", made.stderr
    for name in ("store-open", "store-behind"):
        store = Store(tmp_path / "x" / name)
        assert store.is_whole
        assert [store.read(row)[0, 0] for row in store.rows] == [0, 1 / 3]
    assert visualizer.verify(tmp_path / "x/store-saving").is_whole
    if code != 5:  # a normal exit, also of a child
        assert visualizer.verify(tmp_path / "x/store-child").is_whole


def test_a_forked_child_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    """A parent that was killed is dead, whatever its children are."""
    reading, writing = os.pipe()
    ended, end = os.pipe()

    def parent() -> None:
        made = StoreWriter(tmp_path / "store")
        assert made
        if os.fork() == 0:
            os.close(end)
            os.read(ended, 1)
            os._exit(0)
        os.write(writing, b".")
        os.kill(os.getpid(), 9)

    pid = fork(parent)
    os.read(reading, 1)
    assert reap(pid) == -9
    captured = a_capture(1)
    captured.save(tmp_path / "store", overwrite=True)
    assert equal(values_of(visualizer.load(tmp_path / "store")), values_of(captured))
    assert os.listdir(tmp_path / "store" / "tmp") == ["lock"]
    for descriptor in (reading, writing, ended, end):
        os.close(descriptor)


def test_workers_of_a_dataloader_are_alive(tmp_path: Path) -> None:
    code = """
        from torch.utils.data import DataLoader, Dataset
        class Numbers(Dataset):
            def __len__(self):
                return 40
            def __getitem__(self, place):
                return torch.full((100, 64), float(place))
        layer = torch.nn.TransformerEncoderLayer(64, 4, batch_first=True).eval()
        loader = DataLoader(Numbers(), batch_size=4, num_workers=2, persistent_workers=True)
        slowly()
        savings = []
        for epoch in range(2):
            for number, batch in enumerate(loader):
                if number < 3:
                    with torch.no_grad(), visualizer.capture(layer, modules=[""]) as captured:
                        layer(batch)
                    name = f"{path}{epoch}{number}"
                    savings.append(captured.save(name, background=True))
        print("done")
    """
    made = run(script(BEGIN, code), str(tmp_path / "x"))
    assert made.stdout == "done\n", made.stderr
    assert made.returncode == 0, made.stderr
    for name in ("00", "01", "02", "10", "11", "12"):
        report = visualizer.verify(tmp_path / "x" / f"store{name}")
        assert report.ok
        assert report.is_whole


def test_a_thread_that_saves_while_the_program_ends(tmp_path: Path) -> None:
    code = """
        captured = take()
        go = threading.Event()
        def work():
            go.wait()
            captured.save(path, background=True)
            captured.save(f"{path}1")
        threading.Thread(target=work).start()
        threading.Timer(0.2, go.set).start()
    """
    made = run(script(BEGIN, code), str(tmp_path))
    assert visualizer.verify(tmp_path / "store").is_whole, made.stderr
    assert visualizer.verify(tmp_path / "store1").is_whole, made.stderr


def test_changed_values_are_said_each_time(tmp_path: Path) -> None:
    gate = threading.Event()
    queue.submit(0, lambda: gate.wait() and None)
    value = np.arange(9.0)
    made = StoreWriter(tmp_path / "store", is_in_background=True, memory="watched")
    made.add(Row(kind="local", value=value, variable="a", function="f"))
    made.add(Row(kind="local", value=np.arange(7.0), variable="b", function="f"))
    made.finish()
    value[0] = 5
    gate.set()
    for _ in range(2):
        with pytest.raises(OverwrittenError, match="the a of f, call 0"):
            made.wait()
    store = Store(tmp_path / "store")
    assert [row.variable for row in store.rows] == ["b"]
    assert store.is_whole
    assert visualizer.verify(tmp_path / "store").ok


@pytest.fixture
def held_back() -> Iterator[threading.Event]:
    """Hold the writer's thread back until the event is set."""
    event = threading.Event()
    queue.submit(0, lambda: None if event.wait(60) else None)
    yield event
    event.set()


def test_what_is_in_the_way_is_told_at_once(tmp_path: Path, held_back: threading.Event) -> None:
    captured = a_capture(1)
    captured.save(tmp_path / "there")
    (tmp_path / "file").write_text("")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/other").write_text("")
    for name, said in (("there", "holds a store"), ("file", "is a file"), ("mixed", "other files")):
        with pytest.raises(StoreExistsError, match=said):
            captured.save(tmp_path / name, background=True)
    with pytest.raises(StoreWriteError, match="can't be written to"):
        captured.save(tmp_path / "file/run", background=True)


def test_a_path_belongs_to_who_was_first(tmp_path: Path, held_back: threading.Event) -> None:
    """Also before the thread has made the folder."""
    first, second = a_capture(1), a_capture(2)
    saving = first.save(tmp_path / "run", background=True)
    assert not (tmp_path / "run").exists()
    for background in (True, False):
        with pytest.raises(StoreWriteError, match="somebody else, in this process"):
            second.save(tmp_path / "run", background=background, overwrite=True)
    held_back.set()
    saving.wait()
    assert equal(values_of(visualizer.load(tmp_path / "run")), values_of(first))
    second.save(tmp_path / "run", background=True, overwrite=True).wait()
    assert equal(values_of(visualizer.load(tmp_path / "run")), values_of(second))


def test_what_another_process_wrote_meanwhile_stays(
    tmp_path: Path, held_back: threading.Event
) -> None:
    first, second = a_capture(1), a_capture(2)
    saving = first.save(tmp_path / "run", background=True)
    assert reap(fork(lambda: second.save(tmp_path / "run"))) == 0
    held_back.set()
    for _ in range(2):
        with pytest.raises(StoreExistsError, match="holds a store already"):
            saving.wait()
    assert equal(values_of(visualizer.load(tmp_path / "run")), values_of(second))
    with pytest.raises(StoreExistsError):  # of what is there, and not since somebody writes
        first.save(tmp_path / "run")


def test_bytes_that_were_lost_are_written_when_they_come_again(tmp_path: Path) -> None:
    gate = threading.Event()
    queue.submit(0, lambda: gate.wait() and None)
    value = np.arange(9.0)
    made = StoreWriter(tmp_path / "store", is_in_background=True, memory="watched", max_bytes=140)
    made.add(Row(kind="local", value=value, variable="a", function="f"))  # a unit of its own
    value[0] = 5
    gate.set()
    while not made.is_done:
        pass
    made.add(Row(kind="local", value=np.arange(9.0), variable="b", function="f"))
    with pytest.raises(OverwrittenError, match="the a of f, call 0"):
        made.close()
    store = Store(tmp_path / "store")
    assert [row.variable for row in store.rows] == ["b"]
    np.testing.assert_array_equal(store.read(store.rows[0]), np.arange(9.0))
