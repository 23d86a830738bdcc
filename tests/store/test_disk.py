"""A disk that is full, folders that can't be written to, permissions: what is said, what stays."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visualizer
from tests.store.processes import a_capture, equal, fork, reap, values_of
from visualizer.errors import StoreExistsError, StoreWriteError
from visualizer.store import Row, Store, StoreWriter, units
from visualizer.store.queue import queue

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def captured() -> Any:
    return a_capture(1)


BEGIN = """
    import os, sys
    from pathlib import Path
    import numpy as np
    import visualizer
    from visualizer.errors import *
    from visualizer.store import Row, Store, StoreWriter, writer
    path = Path(sys.argv[1]) / "store"
    writer.UNIT_BYTES = 100_000
    def row(number):
        value = np.random.default_rng(number).random(50_000)
        return Row(kind="local", value=value, variable=f"v{number}", function="f")
    def raised(work):
        try:
            work()
        except StoreWriteError as error:
            return str(error)
        raise AssertionError("nothing was raised")
    def check(count, what):
        store = Store(path)
        assert len(store.rows) == count, len(store.rows)
        for number, found in enumerate(store.rows):
            assert (store.read(found) == row(number).value).all()
        assert visualizer.verify(path).ok
        assert os.listdir(path / "tmp") == ["lock"], os.listdir(path / "tmp")
        assert len(list((path / "shards").iterdir())) == count, "a shard of no unit is left"
"""

FULL = """
    for background in (False, True):
        made = StoreWriter(path, is_in_background=background, overwrite=background)
        if background:  # what was there before stays until the end
            first = len(Store(path).rows)
        said = []
        for number in range(100):
            try:
                made.add(row(number))
            except StoreWriteError as error:
                said.append(str(error))
                break
        if background:
            said.append(raised(made.wait))
        assert WHAT in said[0], said
        assert str(path) in said[0] and "stays readable" in said[0]
        assert raised(lambda: made.add(row(0))) == said[0]
        assert raised(made.close) == said[0]
        assert raised(made.close) == said[0]
        if not background:
            assert number >= 2
            check(number, WHAT)
            committed = number
        else:
            check_old(committed)
    print("done")
"""

CHECK_OLD = """
    def check_old(count):
        store = Store(path)
        for number, found in enumerate(store.rows):
            assert (store.read(found) == row(number).value).all()
        assert len(store.rows) == count
        assert os.listdir(path / "tmp") == ["lock"]
        assert visualizer.verify(path).ok
"""


def script(*parts: str) -> str:
    return "\n".join(map(textwrap.dedent, parts))


def run(command: list[str], code: str, *arguments: str) -> str:
    made = subprocess.run(
        [*command, sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


def own_mounts() -> list[str] | None:
    """Return what a command begins with that may mount file systems; None where that can't be."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        try:
            mount = [*command, "mount", "-t", "tmpfs", "none", "/mnt"]
            if subprocess.run(mount, capture_output=True).returncode == 0:
                return command
        except OSError:
            return None
    return None


MOUNTS = own_mounts()
needs_mounts = pytest.mark.skipif(MOUNTS is None, reason="no file system can be mounted here")


@needs_mounts
def test_a_full_disk(tmp_path: Path) -> None:
    assert MOUNTS is not None
    mount = f'mount -t tmpfs -o size=2m none "{tmp_path}" && exec "$0" "$@"'
    code = script(BEGIN, 'WHAT = "No space left on device"', CHECK_OLD, FULL)
    assert run([*MOUNTS, "sh", "-c", mount], code, str(tmp_path)) == "done\n"


@needs_mounts
def test_a_disk_without_room_for_a_folder(tmp_path: Path) -> None:
    assert MOUNTS is not None
    mount = f'mount -t tmpfs -o nr_inodes=3 none "{tmp_path}" && exec "$0" "$@"'
    code = """
        said = raised(lambda: StoreWriter(path))
        assert "No space left" in said, said
        print("done")
    """
    assert run([*MOUNTS, "sh", "-c", mount], script(BEGIN, code), str(tmp_path)) == "done\n"


@needs_mounts
def test_a_disk_that_is_read_only(tmp_path: Path, captured: Any) -> None:
    assert MOUNTS is not None
    captured.save(tmp_path / "there")
    mount = (
        f'mount --bind "{tmp_path}" "{tmp_path}" && '
        f'mount -o remount,bind,ro "{tmp_path}" && exec "$0" "$@"'
    )
    code = """
        there = path.parent / "there"
        assert "Read-only" in raised(lambda: StoreWriter(path))
        assert "Read-only" in raised(lambda: StoreWriter(there, overwrite=True))
        loaded = visualizer.load(there)
        for name in ("store", "a/store"):  # at once, and not when the thread comes to it
            saying = raised(lambda: loaded.save(path.parent / name, background=True))
            assert f"{path.parent / name} can't be written to" in saying, saying
            assert f"{path.parent} is read-only, or somebody else's" in saying, saying
        assert visualizer.verify(there).ok
        assert len(visualizer.load(there).attention) == 3
        print("done")
    """
    assert run([*MOUNTS, "sh", "-c", mount], script(BEGIN, code), str(tmp_path)) == "done\n"


def test_a_file_that_grows_too_large(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    code = """
        import resource
        made = StoreWriter(path)
        for number in range(3):
            made.add(row(number))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        said = raised(lambda: made.add(row(3)))
        assert "File too large" in said, said
        assert raised(made.close) == said
        check(3, "")
        print("done")
    """
    assert run([], script(BEGIN, code), str(tmp_path)) == "done\n"


def test_an_index_that_grows_too_large(tmp_path: Path) -> None:
    """The tensors were written before, and are removed."""
    pytest.importorskip("resource")
    code = """
        import resource
        made = StoreWriter(path)
        made.add(row(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        made.add(Row(kind="local", value=["x" * 700_000, np.arange(10.0)], variable="v"))
        assert "File too large" in raised(made.close)
        check(1, "")
        print("done")
    """
    assert run([], script(BEGIN, code), str(tmp_path)) == "done\n"


def test_the_next_block_and_the_next_save_say_what_went_wrong(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    code = """
        import resource, torch
        layer = torch.nn.TransformerEncoderLayer(64, 4, batch_first=True).eval()
        def take():
            with torch.no_grad(), visualizer.capture(layer) as captured:
                layer(torch.randn(4, 50, 64))
            return captured
        captured = take()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        def fail():
            saving = captured.save(path, overwrite=True, background=True)
            while not saving.is_done:
                pass
            return saving
        saving = fail()
        said = raised(take)  # before the block is open
        assert "File too large" in said
        take()  # once
        assert raised(saving.wait) == said  # and whoever asks
        assert raised(saving.wait) == said
        saving = fail()
        assert raised(lambda: captured.save(path.parent / "other")) == said
        assert not (path.parent / "other").exists()
        print("done")
    """
    assert run([], script(BEGIN, code), str(tmp_path)) == "done\n"


def _failing(patch: pytest.MonkeyPatch, name: str, place: int) -> list[int]:
    """Let a call of `os` fail; return what counts them."""
    function, count = getattr(os, name), [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == place:
            raise OSError(5, "Input/output error")
        return function(*args, **kwargs)

    patch.setattr(os, name, failing)
    return count


@pytest.mark.parametrize("name", ["fsync", "replace", "mkdir"])
def test_whatever_fails_nothing_is_there_by_halves(
    name: str, captured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = a_capture(2)
    for place in range(1, 30):
        path = tmp_path / f"{name}{place}"
        if place % 2:
            other.save(path)
        with monkeypatch.context() as patch:
            count = _failing(patch, name, place)
            try:
                captured.save(path, overwrite=True)
                failed = False
            except StoreWriteError as error:
                assert "Input/output error" in str(error)
                failed = True
        if count[0] < place:
            break
        assert failed or name == "mkdir"  # of what is there already
        tmp = path / "tmp"
        assert not tmp.exists() or set(os.listdir(tmp)) <= {"lock"}
        if place % 2:
            report = visualizer.verify(path)
            assert report.ok
            assert report.is_whole
            found = values_of(visualizer.load(path))
            may_be_new = not failed or name == "fsync"  # that of the root is the last
            assert equal(found, values_of(other)) or (
                may_be_new and equal(found, values_of(captured))
            )
        elif (path / "store.json").exists():
            assert visualizer.verify(path).ok
        captured.save(path, overwrite=True)
        assert equal(values_of(visualizer.load(path)), values_of(captured))
    else:
        raise AssertionError("it never came to its end")
    assert place > 3


def test_a_shard_is_removed_where_its_index_can_not_be_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        if str(target).endswith(".jsonl"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    made = StoreWriter(tmp_path / "store")
    made.add(Row(kind="local", value=np.arange(9.0), variable="v"))
    with pytest.raises(StoreWriteError):
        made.close()
    assert not list((tmp_path / "store" / "shards").iterdir())


def _as_nobody(work: Any) -> int:
    def child() -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        work()

    return reap(fork(child))


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs setuid")
def test_a_folder_that_may_not_be_written_to(captured: Any, tmp_path: Path) -> None:
    """For root everything may be: it is nobody who tries."""
    modes = {each: each.stat().st_mode for each in (tmp_path, *tmp_path.parents)}
    for folder, mode in modes.items():
        if mode & 0o055 != 0o055:
            folder.chmod(mode | 0o055)
    captured.save(tmp_path / "there")
    (tmp_path / "locked").mkdir()
    for folder, _, files in os.walk(tmp_path):
        os.chmod(folder, 0o555)
        for file in files:
            os.chmod(os.path.join(folder, file), 0o444)

    def work() -> None:
        with pytest.raises(StoreWriteError, match="Permission denied"):
            captured.save(tmp_path / "locked" / "store")
        with pytest.raises(StoreWriteError, match="Permission denied"):
            captured.save(tmp_path / "there", overwrite=True)
        assert visualizer.verify(tmp_path / "there").ok
        assert equal(values_of(visualizer.load(tmp_path / "there")), values_of(captured))

    try:
        assert _as_nobody(work) == 0
    finally:
        for folder, _, _ in os.walk(tmp_path):
            os.chmod(folder, 0o755)
        for above, mode in modes.items():
            if mode & 0o055 != 0o055:
                above.chmod(mode)


def test_a_path_that_is_a_file(captured: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(StoreExistsError, match="is a file; give the path of a folder"):
            captured.save(tmp_path / "file", **options)
        with pytest.raises(StoreWriteError, match="Not a directory"):
            captured.save(tmp_path / "file" / "store", **options)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_other_files_in_it(captured: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(StoreExistsError, match="has other files in it"):
            captured.save(tmp_path, **options)
    assert os.listdir(tmp_path) == ["notes.txt"]
    (tmp_path / "other" / "shards").mkdir(parents=True)
    (tmp_path / "other" / "shards" / "mine.bin").write_text("mine")
    with pytest.raises(StoreExistsError, match="has other files in it"):
        captured.save(tmp_path / "other", overwrite=True)


def test_files_of_others_stay_where_a_store_is_replaced(captured: Any, tmp_path: Path) -> None:
    captured.save(tmp_path / "store")
    mine = [tmp_path / "store" / name for name in ("notes.txt", "shards/a.bin", "index/a.txt")]
    for file in mine:
        file.write_text("mine")
    captured.save(tmp_path / "store", overwrite=True)
    assert [file.read_text() for file in mine] == ["mine"] * 3
    assert visualizer.verify(tmp_path / "store").ok


def test_parents_are_made_and_an_empty_folder_is_taken(captured: Any, tmp_path: Path) -> None:
    captured.save(tmp_path / "a" / "b" / "store")
    (tmp_path / "empty").mkdir()
    captured.save(tmp_path / "empty")
    assert visualizer.verify(tmp_path / "a/b/store").ok
    assert visualizer.verify(tmp_path / "empty").ok


def test_a_path_in_the_home_folder(
    captured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saving = captured.save("~/runs/store")
    assert saving.path == tmp_path / "runs" / "store"
    assert visualizer.verify("~/runs/store").ok
    assert equal(values_of(visualizer.load("~/runs/store")), values_of(captured))


def test_a_path_that_does_not_begin_at_the_root(
    captured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    captured.save("store")
    loaded = visualizer.load("store")
    monkeypatch.chdir("/")
    assert equal(values_of(loaded), values_of(captured))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_permissions_are_those_of_the_umask(umask: int, captured: Any, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        captured.save(tmp_path / "a" / "store")
        captured.save(tmp_path / "a" / "store", overwrite=True, background=True).wait()
    finally:
        os.umask(before)
    modes = {
        (entry.relative_to(tmp_path).as_posix(), stat.S_IMODE(entry.stat().st_mode))
        for entry in tmp_path.rglob("*")
    }
    assert {mode for name, mode in modes if (tmp_path / name).is_dir()} == {0o777 & ~umask}
    assert {mode for name, mode in modes if (tmp_path / name).is_file()} == {0o666 & ~umask}


def test_a_value_whose_writing_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the unit that Ctrl-C took there is no whole store, and nobody says so."""
    path = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt), StoreWriter(path) as made:
        made.add(Row(kind="local", value=1, variable="a"))
        with monkeypatch.context() as patch:
            patch.setattr(units, "render_index", _interrupt)
            made._write_unit(is_last=False)
    assert not Store(path).is_whole
    assert not Store(path).rows
    assert os.listdir(path / "tmp") == ["lock"]
    with StoreWriter(path, overwrite=True) as made:
        made.add(Row(kind="local", value=torch.ones(2), variable="a"))
    assert Store(path).is_whole
    shutil.rmtree(path)


def test_a_wait_for_the_queue_that_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, is_in_background=True) as made:
        made.add(Row(kind="local", value=1, variable="a"))
        with monkeypatch.context() as patch:
            patch.setattr(queue, "submit", _interrupt)
            made._write_unit(is_last=False)
    store = Store(path)
    assert not store.is_whole
    assert not store.rows
    assert not store.damages
    assert os.listdir(path / "tmp") == ["lock"]


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_store_that_nothing_was_written_to_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    row = Row(kind="output", value=np.arange(3))
    with monkeypatch.context() as patched:
        patched.setattr("visualizer.store.units.write_shard", fail)
        with pytest.raises(StoreWriteError), StoreWriter(tmp_path / "run") as writer:
            writer.add(row)
    with StoreWriter(tmp_path / "run") as writer:  # without overwrite=True
        writer.add(row)
    store = Store(tmp_path / "run")
    assert store.is_whole
    assert np.array_equal(store.read(store.rows[0]), [0, 1, 2])
