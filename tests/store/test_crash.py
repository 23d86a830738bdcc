"""A process that saves is killed at any moment; so is the machine. What was committed is there."""

from __future__ import annotations

import builtins
import itertools
import os
import random
import shutil
import signal
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import visualizer
from tests.store.processes import (
    a_capture,
    check_files,
    die,
    equal,
    fork,
    read_all,
    reap,
    save_in_units,
    values_of,
)
from visualizer.errors import CaptureWarning, NotAStoreError, StoreExistsError
from visualizer.store import Store, StoreWriter, units, writer
from visualizer.store.queue import queue

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

CALLS = ("fsync", "replace", "mkdir", "unlink", "rmdir", "chmod")


@pytest.fixture(scope="module")
def old() -> Any:
    return a_capture(1)


@pytest.fixture(scope="module")
def new() -> Any:
    return a_capture(2)


def check_new(path: Path, told: str, captured: Any) -> str:
    """Hold what a killed process left against what it had said that it committed."""
    committed = {int(line) for line in told.split()}
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            loaded = visualizer.load(path)
    except NotAStoreError:
        assert not committed
        return "nothing"
    store, report, expected = Store(path), visualizer.verify(path), values_of(captured)
    assert report.ok, str(report)
    assert committed <= set(store.units)
    found = values_of(loaded)
    assert all((found[key] == expected[key]).all() for key in found)
    check_files(path)
    if store.is_whole:
        assert not seen
        assert found.keys() == expected.keys()
        return "whole"
    assert any("was not written to its end" in str(each.message) for each in seen)
    assert all(issubclass(each.category, CaptureWarning) for each in seen)
    return "a part"


def check_repaired(path: Path, captured: Any) -> None:
    """Save again over what a killed process left."""
    captured.save(path, overwrite=True)
    assert equal(values_of(visualizer.load(path)), values_of(captured))
    assert visualizer.verify(path).ok
    assert os.listdir(path / "tmp") == ["lock"]
    units = {Path(name).stem for name in os.listdir(path / "index")}
    assert {Path(name).stem for name in os.listdir(path / "shards")} <= units
    assert len(units) == len(Store(path).units)


def check_replaced(path: Path, old: Any, new: Any) -> str:
    """Make sure that one of two captures is there, whole and undamaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = values_of(visualizer.load(path))
    report = visualizer.verify(path)
    assert report.ok, str(report)
    assert report.is_whole
    which = "old" if equal(found, values_of(old)) else "new"
    assert which == "old" or equal(found, values_of(new))
    return which


def killed_at(place: int) -> None:
    """Wrap what changes files, for a process of its own: it dies at the border of such a call.

    Args:
        place: At which: twice its number, and one more behind it.
    """
    count = itertools.count()

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(count) == place:
                die()
            found = function(*args, **kwargs)
            if next(count) == place:
                die()
            return found

        return wrapped

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    builtins.open = wrap(open)
    units.write_shard = wrap(units.write_shard)


def kill_at(place: int, work: Callable[[int], None]) -> tuple[bool, str]:
    """Let a process die at a place; return whether it did, and what it told."""
    reading, writing = os.pipe()

    def child() -> None:
        killed_at(place)
        work(writing)

    pid = fork(child)
    os.close(writing)
    told = read_all(reading)
    code = reap(pid)
    assert code in (0, -signal.SIGKILL)
    return code != 0, told


def places(first: int, step: int) -> Iterator[int]:
    return itertools.count(first, step)


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_the_borders_of_calls(step: int, old: Any, new: Any, tmp_path: Path) -> None:
    seen, kills = set(), 0
    for place in places(0, step):
        path = tmp_path / f"at{place}"
        died, told = kill_at(place, lambda pipe: save_in_units(old, path, pipe))
        seen.add(check_new(path, told, old))
        if not died:
            break
        kills += 1
        check_repaired(path, new)
    assert seen == {"nothing", "a part", "whole"}
    assert kills * step > 80


def test_killed_before_the_first_unit(old: Any, new: Any, tmp_path: Path) -> None:
    for place in range(30):
        path = tmp_path / f"at{place}"
        died, told = kill_at(place, lambda pipe: save_in_units(old, path, pipe))
        assert died
        check_new(path, told, old)
        if place % 5 == 0:
            check_repaired(path, new)


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_an_overwrite_killed_at_the_borders_of_calls(
    step: int, old: Any, new: Any, tmp_path: Path
) -> None:
    seen = set()
    for place in places(0, step):
        path = tmp_path / f"at{place}"
        old.save(path)
        died, _ = kill_at(place, lambda pipe: save_in_units(new, path, pipe, overwrite=True))
        seen.add(check_replaced(path, old, new))
        check_files(path)
        if not died:
            break
        check_repaired(path, new)
    assert seen == {"old", "new"}


@pytest.mark.parametrize("kills", [15, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_killed_at_random_moments(kills: int, background: bool, new: Any, tmp_path: Path) -> None:
    captured = a_capture(3, depth=6)
    chance = random.Random(kills)
    longest = [_run_until(captured, tmp_path / f"t{i}", background, None)[0] for i in range(3)]
    seen = []
    for number in range(kills):
        path = tmp_path / f"killed{number}"
        delay = chance.uniform(0, 1.1 * sorted(longest)[1])
        _, told = _run_until(captured, path, background, delay)
        seen.append(check_new(path, told, captured))
        check_repaired(path, new)
        shutil.rmtree(path)
    print({each: seen.count(each) for each in set(seen)})
    assert "a part" in seen or kills < 100


@pytest.mark.parametrize("kills", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_an_overwrite_killed_at_random_moments(
    kills: int, old: Any, new: Any, tmp_path: Path
) -> None:
    chance = random.Random(kills)
    path = tmp_path / "store"
    old.save(path)
    longest = _run_until(old, path, False, None, overwrite=True)[0]
    seen = []
    for number in range(kills):
        there, other = (
            (old, new)
            if equal(values_of(visualizer.load(path)), values_of(old))
            else (
                new,
                old,
            )
        )
        _run_until(other, path, False, chance.uniform(0, 1.1 * longest), overwrite=True)
        seen.append(check_replaced(path, there, other))
        check_files(path)
    print({each: seen.count(each) for each in set(seen)})
    check_repaired(path, new)


def _run_until(
    captured: Any, path: Path, background: bool, delay: float | None, **options: Any
) -> tuple[float, str]:
    """Save in a process that is killed after so many seconds; return how long it ran."""
    reading, writing = os.pipe()
    ready, begin = os.pipe()

    def child() -> None:
        os.write(begin, b".")
        if background:
            save_in_units(captured, path, writing, background=True, **options)
            queue.submit(0, lambda: None).result()
        else:
            save_in_units(captured, path, writing, **options)

    pid = fork(child)
    os.close(writing)
    os.read(ready, 1)
    started = time.perf_counter()
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    told = read_all(reading)
    assert reap(pid) in (0, -signal.SIGKILL)
    os.close(ready)
    os.close(begin)
    return time.perf_counter() - started, told


def test_what_dead_writers_left_is_swept_and_what_living_ones_write_stays(
    old: Any, new: Any, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    kill_at(60, lambda pipe: save_in_units(old, path, pipe))
    (dead,) = [entry for entry in (path / "tmp").iterdir() if entry.is_dir()]
    reading, writing = os.pipe()
    going, go = os.pipe()

    def living() -> None:
        os.close(go)
        with StoreWriter(path, overwrite=True) as made:
            os.write(writing, b".")
            os.read(going, 1)
            for number, tree in enumerate([1, "two"]):
                made.add(visualizer.store.Row(kind="local", value=tree, variable=f"v{number}"))

    pid = fork(living)
    assert os.read(reading, 1) == b"."
    (alive,) = [entry for entry in (path / "tmp").iterdir() if entry.is_dir()]
    assert alive != dead
    with pytest.raises(visualizer.errors.StoreWriteError, match="somebody else.*is writing"):
        new.save(path, overwrite=True)
    assert (alive / "owner").exists()
    os.write(go, b".")
    assert reap(pid) == 0
    assert [row.value for row in Store(path).rows] == [1, "two"]
    check_repaired(path, new)
    for descriptor in (reading, writing, going, go):
        os.close(descriptor)


def test_without_overwrite_what_a_killed_process_left_stays(
    old: Any, new: Any, tmp_path: Path
) -> None:
    kill_at(60, lambda pipe: save_in_units(old, tmp_path / "store", pipe))
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        new.save(tmp_path / "store")


def test_killed_before_there_is_anything_the_path_is_free(old: Any, tmp_path: Path) -> None:
    path = tmp_path / "store"
    (path / "shards").mkdir(parents=True)
    (path / "tmp").mkdir()
    old.save(path)
    assert visualizer.verify(path).ok


class Disk:
    """What a disk has for sure: what was forced to it. The rest may be there or not.

    Files that were not forced are empty; each folder has either what it had when it was forced,
    or what it has now.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.files: dict[int, bytes] = {}
        self.folders: dict[int, dict[str, int]] = {}
        self.kept: list[int] = []  # open, so that no number is used again
        self.note(os.open(top, os.O_RDONLY))

    def note(self, descriptor: int) -> None:
        """Note what is forced to the disk."""
        about = os.fstat(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if stat.S_ISDIR(about.st_mode):
            self.folders[about.st_ino] = self.entries(path)
        else:
            self.files[about.st_ino] = path.read_bytes()
        self.kept.append(os.dup(descriptor))

    def note_all(self) -> None:
        for folder, names, files in os.walk(self.top):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                descriptor = os.open(path, os.O_RDONLY)
                self.note(descriptor)
                os.close(descriptor)

    def entries(self, folder: Path) -> dict[str, int]:
        return {
            each.name: each.stat(follow_symlinks=False).st_ino
            for each in os.scandir(folder)
            if each.name != "tmp"
        }

    def images(self, store: Path) -> Iterator[dict[str, bytes | None]]:
        """Yield what may be found under `top` after the power was gone: bytes, None for folders."""
        folders = [each for each in (store, store / "shards", store / "index") if each.is_dir()]
        for size in range(len(folders) + 1):
            for lucky in itertools.combinations(folders, size):
                now = {each.stat().st_ino: self.entries(each) for each in lucky}
                yield self._image(self.folders | now, self.top.stat().st_ino, "")

    def _image(
        self, folders: dict[int, dict[str, int]], number: int, path: str
    ) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for name, inner in folders.get(number, {}).items():
            where = f"{path}{name}"
            if inner in self.files or "." in name:
                found[where] = self.files.get(inner, b"")
            else:
                found[where] = None
                found |= self._image(folders, inner, f"{where}/")
        return found

    def close(self) -> None:
        for descriptor in self.kept:
            os.close(descriptor)


def _power_losses(
    monkeypatch: pytest.MonkeyPatch, disk: Disk, store: Path, work: Callable[[], None]
) -> Iterator[dict[str, bytes | None]]:
    """Do something, and return each state in which a loss of power may leave the disk."""
    found: dict[tuple[Any, ...], dict[str, bytes | None]] = {}

    def look() -> None:
        for image in disk.images(store):
            found.setdefault(tuple(sorted(image.items(), key=lambda item: item[0])), image)

    def wrap(name: str, note: bool = False) -> None:
        function = getattr(os, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            made = function(*args, **kwargs)
            if note:
                disk.note(args[0])
            look()
            return made

        monkeypatch.setattr(os, name, wrapped)

    wrap("fsync", note=True)
    for name in ("replace", "unlink", "mkdir"):
        wrap(name)
    work()
    monkeypatch.undo()
    yield from found.values()


def _put(image: dict[str, bytes | None], where: Path) -> None:
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    for name, content in image.items():
        if content is None:
            (where / name).mkdir()
        else:
            (where / name).write_bytes(content)


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


@needs_proc
def test_an_overwrite_survives_a_loss_of_power(
    old: Any, new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top := tmp_path / "disk").mkdir()
    old.save(top / "store")
    disk = Disk(top)
    disk.note_all()
    monkeypatch.setattr(writer, "UNIT_BYTES", 3000)
    seen = []
    work = lambda: new.save(top / "store", overwrite=True)
    for image in _power_losses(monkeypatch, disk, top / "store", work):
        _put(image, tmp_path / "image")
        seen.append(check_replaced(tmp_path / "image" / "store", old, new))
    disk.close()
    assert set(seen) == {"old", "new"}
    assert len(seen) > 10


@needs_proc
def test_what_was_committed_survives_a_loss_of_power(
    old: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top := tmp_path / "disk").mkdir()
    disk = Disk(top)
    monkeypatch.setattr(writer, "UNIT_BYTES", 3000)
    expected, seen = values_of(old), []
    for image in _power_losses(
        monkeypatch, disk, top / "a/b/store", lambda: old.save(top / "a/b/store")
    ):
        _put(image, tmp_path / "image")
        path = tmp_path / "image" / "a/b/store"
        if not any("u0" in name for name in image):
            continue  # nothing is there yet, perhaps not even what tells that
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = values_of(visualizer.load(path))
            except NotAStoreError:
                continue
        damages = visualizer.verify(path).damages
        assert all(damage.unit is None for damage in damages), damages
        assert all((found[key] == expected[key]).all() for key in found)
        seen.append(len(found))
    assert max(seen) == len(expected)
    final = disk._image(disk.folders, top.stat().st_ino, "")  # only what was forced
    _put(final, tmp_path / "image")
    disk.close()
    path = tmp_path / "image" / "a/b/store"
    assert Store(path).is_whole
    assert equal(values_of(visualizer.load(path)), expected)


@needs_proc
def test_a_unit_is_on_the_disk_when_it_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top := tmp_path / "disk").mkdir()
    disk = Disk(top)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (fsync(descriptor), disk.note(descriptor)))
    monkeypatch.setattr(writer, "UNIT_BYTES", 1)
    made = StoreWriter(top / "store")
    for number in range(3):
        row = visualizer.store.Row(kind="local", value=np.full(9, number), variable=f"v{number}")
        made.add(row)
        _put(disk._image(disk.folders, top.stat().st_ino, ""), tmp_path / "image")
        store = Store(tmp_path / "image" / "store")
        assert [store.read(row)[0] for row in store.rows] == list(range(number + 1))
        assert not store.damages
        assert not store.is_whole
    made.close()
    disk.close()


@needs_proc
def test_the_order_of_what_is_forced_to_the_disk(
    old: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def name_of(path: str) -> str:
        parts = Path(path).relative_to(tmp_path).parts
        where = "tmp" if "tmp" in parts else "/".join(parts[:-1])
        return f"{where}:{parts[-1]}"

    def noted_fsync(descriptor: int) -> None:
        events.append(f"sync {name_of(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def noted_replace(source: Any, target: Any) -> None:
        events.append(f"to {name_of(target)}")
        replace(source, target)

    old.save(tmp_path / "store")
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    old.save(tmp_path / "store", overwrite=True)
    assert sorted(events[:3]) == [
        "sync tmp:store.json",
        "sync tmp:u00000001.jsonl",
        "sync tmp:u00000001.safetensors",
    ]
    assert events[3:] == [
        "to store/shards:u00000001.safetensors",
        "sync store:shards",
        "to store/index:u00000001.jsonl",
        "sync store:index",
        "to store:store.json",
        "sync :store",
    ]
