"""Files of a store are changed, cut off, lost or swapped: all is found, the rest is read."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import visualizer
from tests.store.processes import a_capture, equal, values_of
from visualizer.errors import CaptureWarning, DamagedError, NotAStoreError
from visualizer.store import Row, Store, StoreWriter, writer
from visualizer.store.index import seal
from visualizer.store.verify import name_of


@pytest.fixture(scope="module")
def captured() -> Any:
    return a_capture(1).annotate(tokens=[f"t{number}" for number in range(6)])


@pytest.fixture(scope="module")
def saved(captured: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of several units, which nobody changes."""
    path = tmp_path_factory.mktemp("saved") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "UNIT_BYTES", 3000)
        captured.save(path)
    assert len(Store(path).units) >= 3
    return path


@pytest.fixture()
def path(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of that store."""
    return Path(shutil.copytree(saved, tmp_path / "store"))


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "lock")


def load(path: Path) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loaded = visualizer.load(path)
    assert all(issubclass(each.category, CaptureWarning) for each in seen)
    return loaded, [str(each.message) for each in seen]


def unreadable(path: Path) -> set[str]:
    """Return the names of all values that can't be read, by trying."""
    store, found = Store(path), set()
    for row in store.rows:
        try:
            store.read(row)
        except DamagedError as error:
            assert "unit u0" in str(error)
            assert "can't" in str(error) or "missing or damaged" in str(error)
            found.add(name_of(row))
    return found


def check_readable(path: Path, captured: Any) -> None:
    """Make sure that every value is right or is refused."""
    expected = values_of(captured)
    loaded, _ = load(path)
    for module in loaded.modules:
        for call, entry in enumerate(loaded.modules[module]):
            try:
                assert np.array_equal(entry.value, expected[module, call])
            except DamagedError:
                pass
    for made in loaded.attention:
        try:
            found = np.asarray(made)
        except DamagedError:
            continue
        assert any(np.array_equal(found, each) for key, each in expected.items() if key[0] == "map")


def check_found(path: Path, file: Path, captured: Any) -> None:
    """Make sure that `verify` finds what was done to a file, and exactly what is lost for it."""
    report = visualizer.verify(path)
    assert not report.ok, file
    assert file.name in str(report), (file, str(report))
    assert len({damage.unit for damage in report.damages}) == len(report.damages)
    assert set(report.lost) == unreadable(path)
    check_readable(path, captured)


def test_500_flipped_bytes(path: Path, captured: Any) -> None:
    chance = random.Random(500)
    files = files_of(path)
    for number in range(500):
        file = files[number % len(files)]
        whole = file.read_bytes()
        place, by = chance.randrange(len(whole)), chance.randrange(1, 256)
        changed = bytearray(whole)
        changed[place] ^= by
        file.write_bytes(changed)
        check_found(path, file, captured)
        file.write_bytes(whole)
    assert visualizer.verify(path).ok


@pytest.mark.parametrize("folder", ["shards", "index"])
def test_every_byte_of_a_file(folder: str, path: Path) -> None:
    file = min((path / folder).iterdir(), key=lambda each: each.stat().st_size)
    whole = file.read_bytes()
    for place in range(0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not visualizer.verify(path).ok, place


def empty(file: Path) -> None:
    file.write_bytes(b"")


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_one(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def link_out(file: Path) -> None:
    elsewhere = file.parents[2] / f"elsewhere {file.name}"
    file.rename(elsewhere)  # the very file: what it holds is right
    file.symlink_to(elsewhere)


def link_nowhere(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.parent / "nothing")


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGES = [empty, halve, cut_one, lengthen, Path.unlink]
DAMAGES += [link_out, link_nowhere, make_folder, make_pipe]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_file_damaged(
    damage: Callable[[Path], None], saved: Path, captured: Any, tmp_path: Path
) -> None:
    for number, name in enumerate(file.relative_to(saved) for file in files_of(saved)):
        path = Path(shutil.copytree(saved, tmp_path / str(number) / "store"))
        damage(path / name)
        check_found(path, path / name, captured)
        _, said = load(path)
        assert len(said) == 1
        assert name.name in said[0]


def test_every_two_files_swapped(saved: Path, captured: Any, tmp_path: Path) -> None:
    names = [file.relative_to(saved) for file in files_of(saved)]
    for number, (one, other) in enumerate(zip(names, names[1:] + names[:1], strict=True)):
        path = Path(shutil.copytree(saved, tmp_path / str(number)))
        (path / one).rename(path / "aside")
        (path / other).rename(path / one)
        (path / "aside").rename(path / other)
        check_found(path, path / one, captured)
        check_found(path, path / other, captured)


def test_a_damaged_value_is_refused_by_the_names_of_its_unit_and_file(
    path: Path, captured: Any
) -> None:
    row = next(row for row in Store(path).rows if row.kind == "output")
    ref = row.value["stored"]
    file = Store(path).layout.shard(ref["unit"])
    content = bytearray(file.read_bytes())
    content[ref["at"]] ^= 1
    file.write_bytes(content)
    loaded, said = load(path)
    assert not said
    with pytest.raises(
        DamagedError, match=rf"unit {file.stem} is damaged.*{file}.*visualizer verify"
    ):
        loaded.modules[row.module_path][row.call].value
    assert visualizer.verify(path).lost == (f"output of {row.module_path}, call 0",)
    others = {key for key in values_of(captured) if key[0] not in (row.module_path, "map")}
    for module, call in others:
        assert np.array_equal(
            loaded.modules[module][call].value, captured.modules[module][call].value
        )


def test_intact_tensors_of_a_unit_of_wrong_size_or_header_are_not_lost(
    path: Path, captured: Any
) -> None:
    file = files_of(path / "shards")[0]
    whole = file.read_bytes()
    lengthen(file)
    report = visualizer.verify(path)
    assert not report.ok
    assert not report.lost
    file.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    report = visualizer.verify(path)
    assert "header" in str(report)
    assert not report.lost
    file.write_bytes(whole[:-1])
    assert 1 <= len(visualizer.verify(path).lost) < 4  # those of the last tensor
    check_found(path, file, captured)


def test_quarantine_puts_aside_what_is_damaged(saved: Path, captured: Any, tmp_path: Path) -> None:
    units = list(Store(saved).units)
    for unit in units:
        path = Path(shutil.copytree(saved, tmp_path / str(unit)))
        file = Store(path).layout.shard(unit)
        halve(file)
        report = visualizer.verify(path, quarantine=True)
        assert {each.name for each in (path / "quarantine").iterdir()} == {
            file.name,
            f"{file.stem}.jsonl",
        }
        assert set(Store(path).units) == set(units) - {unit}
        loaded, said = load(path)
        assert len(said) == 1
        assert file.stem in said[0]
        assert "quarantine" in said[0]
        left = {name_of(row) for row in Store(path).rows} - unreadable(path)
        assert left.isdisjoint(report.lost)
        assert left | set(report.lost) == {name_of(row) for row in Store(saved).rows}
        check_readable(path, captured)
        again = visualizer.verify(path, quarantine=True)
        assert [damage.unit for damage in again.damages] == [unit]


def test_a_store_with_units_put_aside_can_be_replaced(path: Path, captured: Any) -> None:
    halve(files_of(path / "shards")[-1])
    visualizer.verify(path, quarantine=True)
    aside = {file.name for file in (path / "quarantine").iterdir()}
    captured.save(path, overwrite=True)
    assert equal(values_of(visualizer.load(path)), values_of(captured))
    assert aside == {file.name for file in (path / "quarantine").iterdir()}
    assert not aside & {file.name for file in (path / "shards").iterdir()}


def test_quarantine_of_links_moves_the_links(path: Path) -> None:
    file = files_of(path / "shards")[0]
    link_out(file)
    target = Path(os.readlink(file))
    visualizer.verify(path, quarantine=True)
    assert target.is_file()
    assert (path / "quarantine" / file.name).is_symlink()


@pytest.mark.parametrize("folder", ["shards", "index"])
def test_a_folder_that_is_a_link_out_of_the_store(folder: str, path: Path) -> None:
    (path / folder).rename(path.parent / "elsewhere")
    (path / folder).symlink_to(path.parent / "elsewhere")
    report = visualizer.verify(path)
    assert len(report.damages) == len(list((path / folder).iterdir()))
    assert "leads out of the store" in str(report)


def test_a_store_behind_a_link_is_read(path: Path, captured: Any, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    assert visualizer.verify(tmp_path / "link").ok
    assert equal(values_of(visualizer.load(tmp_path / "link")), values_of(captured))


def test_without_store_json_all_values_are_there(path: Path, captured: Any) -> None:
    (path / "store.json").unlink()
    loaded, said = load(path)
    assert "store.json is missing" in said[0]
    assert equal(values_of(loaded), values_of(captured))


def test_store_json_of_another_version(path: Path) -> None:
    about = json.loads((path / "store.json").read_bytes().splitlines()[0])
    (path / "store.json").write_bytes(seal([json.dumps({**about, "visualizer_store": 2})]))
    with pytest.raises(NotAStoreError, match="version 2.*reads version 1"):
        visualizer.load(path)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["[]"],
        ["3"],
        ["{}", "{}"],
        ["{"],
        ["[" * 100_000],
        ['{"visualizer_store":1}'],
        ['{"visualizer_store":1,"generation":"x","units":null}'],
        ['{"visualizer_store":1,"generation":1,"units":3}'],
        ['{"visualizer_store":1,"generation":1,"units":[[]]}'],
        ['{"visualizer_store":1,"generation":1,"units":[-1]}'],
        ['{"visualizer_store":1,"generation":1,"units":["../u"]}'],
    ],
    ids=range(12),
)
def test_store_json_that_somebody_wrote(lines: list[str], path: Path, captured: Any) -> None:
    (path / "store.json").write_bytes(seal(lines))
    loaded, said = load(path)
    assert "store.json" in said[0]
    assert equal(values_of(loaded), values_of(captured))
    assert [damage.unit for damage in visualizer.verify(path).damages] == [None]


def rewrite(path: Path, change: Callable[[dict[str, Any], list[Any]], Any]) -> Path:
    """Change lines of the first unit's index, and seal it again."""
    file = files_of(path / "index")[0]
    first, *rows = map(json.loads, file.read_bytes().splitlines()[:-1])
    made = change(first, rows)
    lines = [first, *rows] if made is None else made
    file.write_bytes(seal([json.dumps(line) for line in lines]))
    return file


LINES: dict[str, Callable[[dict[str, Any], list[Any]], Any]] = {
    "no line": lambda first, rows: [],
    "a list": lambda first, rows: [[], *rows],
    "a row that is a list": lambda first, rows: [first, []],
    "a row that is a number": lambda first, rows: [first, 3],
    "no kind": lambda first, rows: rows[0].pop("kind") and None,
    "a kind that is a list": lambda first, rows: rows[0].update(kind=[]),
    "a function that is a list": lambda first, rows: rows[0].update(function=[]),
    "a shape that is a text": lambda first, rows: rows[0].update(shape="text"),
    "a shape of texts": lambda first, rows: rows[0].update(shape=["text"]),
    "facts that are a list": lambda first, rows: rows[0].update(facts=[]),
    "a size that is a text": lambda first, rows: first.update(shard_bytes="text"),
    "a size below zero": lambda first, rows: first.update(header_bytes=-1),
    "a hash that is a number": lambda first, rows: first.update(header_hash=3),
    "no generation": lambda first, rows: first.pop("generation") and None,
    "another generation": lambda first, rows: first.update(generation=7),
    "another unit": lambda first, rows: first.update(unit=7),
    "a unit that is a text": lambda first, rows: first.update(unit="text"),
    "another version": lambda first, rows: first.update(visualizer=2),
}


@pytest.mark.parametrize("change", LINES.values(), ids=LINES.keys())
def test_an_index_that_somebody_wrote(
    change: Callable[[dict[str, Any], list[Any]], Any], path: Path, captured: Any
) -> None:
    file = rewrite(path, change)
    check_found(path, file, captured)


REFS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{
        f"no {key}": (lambda ref, key=key: ref.pop(key))
        for key in ("unit", "at", "bytes", "xxh3_128")
    },
    "a unit that is a text": lambda ref: ref.update(unit="text"),
    "a unit that is a list": lambda ref: ref.update(unit=[]),
    "a unit that is not there": lambda ref: ref.update(unit=77),
    "a place that is a text": lambda ref: ref.update(at="text"),
    "a place before the file": lambda ref: ref.update(at=-8),
    "a place behind the file": lambda ref: ref.update(at=10**9),
    "all the memory there is": lambda ref: ref.update(bytes=10**15),
    "a hash that is a number": lambda ref: ref.update(xxh3_128=3),
    "another hash": lambda ref: ref.update(xxh3_128="0" * 32),
}


@pytest.mark.parametrize("change", REFS.values(), ids=REFS.keys())
def test_a_reference_that_somebody_wrote(
    change: Callable[[dict[str, Any]], Any], path: Path
) -> None:
    def change_rows(first: dict[str, Any], rows: list[Any]) -> None:
        change(rows[0]["value"]["stored"])

    rewrite(path, change_rows)
    report = visualizer.verify(path)
    assert not report.ok
    (row, *others) = Store(path).rows
    assert report.lost == (name_of(row),)
    with pytest.raises(DamagedError):
        Store(path).read(row)
    for other in others:
        Store(path).read(other)
    report = visualizer.verify(path, quarantine=True)
    assert report.lost[0] == name_of(row)
    assert visualizer.verify(path).damages


def test_a_shard_that_is_said_to_be_larger_than_memory(path: Path) -> None:
    def change_rows(first: dict[str, Any], rows: list[Any]) -> None:
        first["shard_bytes"] = 10**16
        rows[0]["value"]["stored"]["bytes"] = 10**15

    rewrite(path, change_rows)
    with pytest.raises(DamagedError, match="cut off"):
        Store(path).read(Store(path).rows[0])
    assert len(visualizer.verify(path).lost) == 1


def test_verify_reads_each_byte_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = np.arange(50_000.0)
    with StoreWriter(tmp_path / "store") as made:
        for number in range(20):
            value = [shared, np.full(1000, number)]
            made.add(Row(kind="local", value=value, variable=f"v{number}", function="f"))
    preadv, counts, largest = os.preadv, [], []

    def counted(descriptor: int, buffers: Any, at: int) -> int:
        found = preadv(descriptor, buffers, at)
        counts.append(found)
        largest.append(max(len(buffer) for buffer in buffers))
        return found

    monkeypatch.setattr(os, "preadv", counted)
    report = visualizer.verify(tmp_path / "store")
    assert report.ok
    assert report.tensors == 21
    assert sum(counts) == report.nbytes
    assert max(largest) <= 16 * 2**20


def test_a_row_that_refers_to_a_tensor_whose_own_row_is_gone(path: Path) -> None:
    """Its bytes are checked all the same: every row's are, wherever they lie."""
    value = np.arange(300.0)
    where = path.parent / "two"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "UNIT_BYTES", 1)
        with StoreWriter(where) as made:
            for name in "ab":
                made.add(Row(kind="local", value=value, variable=name, function="f"))
    rewrite(where, lambda first, rows: [first])
    assert visualizer.verify(where).ok
    file = files_of(where / "shards")[0]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert visualizer.verify(where).lost == ("b of f, call 0",)


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    for function in (visualizer.load, visualizer.verify):
        with pytest.raises(NotAStoreError, match="is a file"):
            function(tmp_path / "file")
        with pytest.raises(NotAStoreError, match="holds no store"):
            function(tmp_path / "folder")
        with pytest.raises(NotAStoreError, match="there is no"):
            function(tmp_path / "nothing")


def test_values_in_the_index_are_lost_with_it_only(path: Path) -> None:
    where = path.parent / "plain"
    with StoreWriter(where) as made:
        made.add(Row(kind="local", value=[1, "two", None], variable="a", function="f"))
    report = visualizer.verify(where)
    assert report.ok
    assert report.tensors == 0
    assert Store(where).read(Store(where).rows[0]) == [1, "two", None]
