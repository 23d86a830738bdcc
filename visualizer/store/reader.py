"""A store that is read: the index at once, tensors when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visualizer._printable import printable
from visualizer.errors import DamagedError, NotAStoreError
from visualizer.store.decoding import decode
from visualizer.store.index import SCHEMA, Row, UnitIndex, parse_index, parse_sealed
from visualizer.store.layout import Layout, is_unit, unit_name
from visualizer.store.pieces import hash_of
from visualizer.store.shards import read_slice

__all__ = ["Damage", "Place", "Store"]

Place = tuple[int, int, int, str]
"""Bytes in a shard: the unit, where they begin, how many they are, and their hash."""

_PLACE = ("unit", "at", "bytes", "xxh3_128")


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a part of a store.

    Attributes:
        unit: The unit's number; None where it is store.json.
        what: What is wrong, in words, with the file's name.
    """

    unit: int | None
    what: str

    def __str__(self) -> str:
        what = printable(self.what)
        return what if self.unit is None else f"unit {unit_name(self.unit)}: {what}"


class Store:
    """A store on the disk.

    Args:
        path: Its folder.
        generation: Which writing of it; None is the one that counts.
    Raises:
        NotAStoreError: There is none, or one of another version.

    Attributes:
        layout: Where its files are.
        about: What `store.json` says: model, versions of libraries, hash of what was asked for.
        units: The indexes that are whole, by number.
        damages: What was found to be wrong with the others.
        is_whole: Whether writing it came to its end, and all units are there.
    """

    def __init__(self, path: str | os.PathLike[str], *, generation: int | None = None) -> None:
        self.layout = Layout(Path(os.path.expanduser(os.fspath(path))).absolute())
        if not self.layout.is_there():
            raise NotAStoreError(_why_none(self.layout))
        self.damages: list[Damage] = []
        while True:
            sealed = self._read_sealed()
            self.damages.clear()
            self.about = self._read_about()
            self.units = self._read_units(generation)
            if not self.damages or self._read_sealed() == sealed:
                break  # or else it was replaced in the middle of this
        expected = self.about.get("units")
        self.is_whole = expected is not None and set(expected) == set(self.units)

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.layout.root

    @property
    def rows(self) -> list[Row]:
        """All values, in the order in which they were written."""
        return [row for unit in self.units.values() for row in unit.rows]

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(unit.shard_bytes for unit in self.units.values())

    def read(self, row: Row) -> Any:
        """Return a value, read from the disk.

        Raises:
            DamagedError: A part of it is not what was written.
        """
        return self.decode(row.value)

    def decode(self, tree: Any) -> Any:
        """Return the value of a tree, or of a part of one.

        Raises:
            DamagedError: A part of it is not what was written.
        """
        try:
            return decode(tree, self.fetch)
        except (DamagedError, MemoryError):
            raise
        except Exception as error:  # of whatever a tree that is not ours asked for
            raise DamagedError(
                f"a row of {self.layout.root} says nothing that can be read: "
                f"{type(error).__name__}: {printable(error)}"
            ) from error

    def fetch(self, ref: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Return the bytes that a reference leads to.

        Raises:
            DamagedError: They are not what was written, or there are none.
        """
        unit, at, nbytes, digest = self.place_of(ref)
        file = self.layout.shard(unit)
        try:
            self.layout.check_inside(file, unit)
            found = read_slice(file, at, nbytes)
        except DamagedError as error:
            self._check_current(error)
            raise DamagedError(
                f"unit {unit_name(unit)} is damaged: {error}. {self._advice}"
            ) from error
        if hash_of(found) != digest:
            self._check_current(None)
            raise DamagedError(
                f"unit {unit_name(unit)} is damaged: bytes {at} to {at + nbytes} of {file} are not "
                f"what was written (its hash differs). {self._advice}"
            )
        return found

    def place_of(self, ref: Mapping[str, Any]) -> Place:
        """Return where the bytes of a reference are, and their hash.

        Raises:
            DamagedError: It leads nowhere.
        """
        found: list[Any] = [ref.get(name) for name in _PLACE]
        unit, at, nbytes, digest = found
        is_place = type(at) is type(nbytes) is int and at >= 0 and nbytes >= 0
        if not (is_unit(unit) and is_place and isinstance(digest, str)):
            raise DamagedError(f"a row of {self.layout.root} leads to no place in a unit: {ref}")
        if unit not in self.units:
            raise DamagedError(
                f"unit {unit_name(unit)} of {self.layout.root} is missing or damaged, which has a "
                f"part of this value; visualizer verify says more"
            )
        if at + nbytes > self.units[unit].shard_bytes:
            raise DamagedError(
                f"a row of {self.layout.root} leads behind the end of {self.layout.shard(unit)}"
            )
        return unit, at, nbytes, digest

    @property
    def was_replaced(self) -> bool:
        """Whether another store stands in this one's place by now."""
        try:
            (about,) = parse_sealed(self.layout.read(self.layout.about), "store.json")
            return bool(about["generation"] != self.about["generation"])
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def _check_current(self, cause: Exception | None) -> None:
        if self.was_replaced:
            raise DamagedError(
                f"{self.layout.root} was overwritten after it was loaded, and what it held then is "
                f"no longer there; visualizer.load it again"
            ) from cause

    @property
    def _advice(self) -> str:
        return f"Other values can be read; visualizer verify {self.layout.root} lists what can't"

    def _read_sealed(self) -> bytes | None:
        try:
            return self.layout.read(self.layout.about)
        except OSError:
            return None

    def _read_about(self) -> dict[str, Any]:
        file = self.layout.about
        try:
            about = _parse_about(self.layout.read(file), file)
        except FileNotFoundError:
            self._note(None, f"{file} is missing")
            return {}
        except DamagedError as error:
            self._note(None, str(error))
            return {}
        except OSError as error:
            self._note(None, f"{file} can't be read: {error.strerror}")
            return {}
        if about["visualizer_store"] != SCHEMA:
            raise NotAStoreError(
                f"{self.layout.root} has version {about['visualizer_store']!r} of the format, "
                f"and this visualizer reads version {SCHEMA}; install the one that wrote it: "
                f"{about.get('libraries')}"
            )
        return about

    def _read_units(self, generation: int | None) -> dict[int, UnitIndex]:
        layout, expected = self.layout, self.about.get("units")
        if generation not in (None, self.about.get("generation")):
            expected = None
        listed = layout.units_in(layout.index) if expected is None else expected
        read = ((number, self._read_unit(number)) for number in listed)
        found = {number: unit for number, unit in read if unit is not None}
        generations = {unit.generation for unit in found.values()}
        if generation is None:
            generation = self.about.get("generation", min(generations, default=1))
        ours = {number: unit for number, unit in found.items() if unit.generation == generation}
        if expected is not None:
            for number in found.keys() - ours.keys():
                self._note(number, f"{layout.index_of(number)} belongs to another writing")
        for unit in ours.values():
            self._check_shard(unit)
        return ours

    def _read_unit(self, number: int) -> UnitIndex | None:
        file = self.layout.index_of(number)
        try:
            return parse_index(self.layout.read(file, number), number, file)
        except FileNotFoundError:
            aside = self.layout.quarantine / file.name
            self._note(
                number, f"{file} is missing" + (f", and in {aside}" if aside.exists() else "")
            )
        except DamagedError as error:
            self._note(number, str(error))
        except OSError as error:
            self._note(number, f"{file} can't be read: {error.strerror}")
        return None

    def _check_shard(self, unit: UnitIndex) -> None:
        """Note a shard that is missing, or has another size; what is in it may still be right."""
        file = self.layout.shard(unit.unit)
        if unit.shard_bytes == 0:
            return
        try:
            self.layout.check_inside(file, unit.unit)
            size = file.stat().st_size
        except DamagedError as error:
            self._note(unit.unit, str(error))
        except OSError as error:
            self._note(unit.unit, f"{file} is missing: {error.strerror}")
        else:
            if size != unit.shard_bytes:
                self._note(unit.unit, f"{file} has {size} bytes; {unit.shard_bytes} were written")

    def _note(self, unit: int | None, what: str) -> None:
        self.damages.append(Damage(unit, what))


def _parse_about(text: bytes, file: Path) -> dict[str, Any]:
    """Return what store.json says.

    Raises:
        DamagedError: It is not what was written.
    """
    lines = parse_sealed(text, str(file))
    about = lines[0] if len(lines) == 1 else None
    if not isinstance(about, dict) or "visualizer_store" not in about:
        raise DamagedError(f"{file} is not what was written: it is another file")
    units = about.get("units")
    is_list = units is None or (isinstance(units, list) and all(map(is_unit, units)))
    if not is_list or type(about.get("generation")) is not int:
        raise DamagedError(f"{file} is not what was written: it lists no units")
    return about


def _why_none(layout: Layout) -> str:
    root = layout.root
    if root.is_file():
        return f"{root} is a file; visualizer.load takes the folder that captured.save(…) made"
    if not root.exists():
        return f"there is no {root}; visualizer.load takes the folder that captured.save(…) made"
    if (root / "store").is_dir():
        return f"{root} holds no store; is it {root / 'store'} that you mean?"
    return f"{root} holds no store: neither store.json nor units are in it"
