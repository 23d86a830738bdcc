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
from visualizer.store.index import SCHEMA, Row, UnitIndex, parse_index, parse_sealed
from visualizer.store.layout import Layout, is_unit, unit_name
from visualizer.store.pieces import hash_of
from visualizer.store.shards import read_slice
from visualizer.store.values import decode

__all__ = ["Damage", "Store"]


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
    Raises:
        NotAStoreError: There is none, or one of another version.

    Attributes:
        layout: Where its files are.
        about: What `store.json` says: model, versions of libraries, hash of what was asked for.
        units: The indexes that are whole, by number.
        damages: What was found to be wrong with the others.
        is_whole: Whether writing it came to its end, and all units are there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.layout = Layout(Path(os.path.expanduser(os.fspath(path))).absolute())
        if not self.layout.is_there():
            raise NotAStoreError(_why_none(self.layout))
        self.damages: list[Damage] = []
        self.about = self._read_about()
        self.units = self._read_units()
        expected = self.about.get("units")
        self.is_whole = expected is not None and set(expected) == set(self.units)

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
        except DamagedError:
            raise
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
            raise DamagedError(
                f"a row of {self.layout.root} says nothing that can be read: {printable(error)}"
            ) from error

    def fetch(self, ref: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Return the bytes that a reference leads to.

        Raises:
            DamagedError: They are not what was written, or there are none.
        """
        unit, at, nbytes = ref["unit"], ref["at"], ref["bytes"]
        if not (is_unit(unit) and type(at) is type(nbytes) is int and at >= 0 and nbytes >= 0):
            raise DamagedError(f"a row of {self.layout.root} leads to no place in a unit: {ref}")
        if unit not in self.units:
            raise DamagedError(
                f"unit {unit_name(unit)} of {self.layout.root} is missing or damaged, which has a "
                f"part of this value; visualizer verify says more"
            )
        file = self.layout.shard(unit)
        self.layout.check_inside(file, unit)
        if at + nbytes > self.units[unit].shard_bytes:
            raise DamagedError(f"a row of {self.layout.root} leads behind the end of {file}")
        found = read_slice(file, at, nbytes)
        if hash_of(found) != ref["xxh3_128"]:
            raise DamagedError(
                f"unit {unit_name(unit)} is damaged: bytes {at} to {at + nbytes} of {file} are not "
                f"what was written (its hash differs). Other values can be read; visualizer verify "
                f"{self.layout.root} lists what can't"
            )
        return found

    def _read_about(self) -> dict[str, Any]:
        try:
            (about,) = parse_sealed(self.layout.about.read_bytes(), "store.json")
        except FileNotFoundError:
            self.damages.append(Damage(None, f"{self.layout.about} is missing"))
            return {}
        except (OSError, DamagedError, ValueError) as error:
            self.damages.append(Damage(None, f"{self.layout.about} can't be read: {error}"))
            return {}
        if about.get("visualizer_store") != SCHEMA:
            raise NotAStoreError(
                f"{self.layout.root} has version {about.get('visualizer_store')!r} of the format, "
                f"and this visualizer reads version {SCHEMA}; install the one that wrote it: "
                f"{about.get('libraries')}"
            )
        return dict(about)

    def _read_units(self) -> dict[int, UnitIndex]:
        found = {}
        layout, expected = self.layout, self.about.get("units")
        listed = layout.units_in(layout.index) if expected is None else expected
        numbers = [number for number in listed if is_unit(number)]
        for number in numbers:
            try:
                found[number] = parse_index(layout.index_of(number).read_bytes(), number)
            except FileNotFoundError:
                self._note(number, f"{layout.index_of(number)} is missing")
            except (OSError, DamagedError) as error:
                self._note(number, str(error))
        generations = {unit.generation for unit in found.values()}
        current = self.about.get("generation", min(generations, default=1))
        return {number: unit for number, unit in found.items() if unit.generation == current}

    def _note(self, unit: int, what: str) -> None:
        self.damages.append(Damage(unit, what))


def _why_none(layout: Layout) -> str:
    root = layout.root
    if not root.exists():
        return f"there is no {root}; visualizer.load takes the folder that captured.save(…) made"
    if (root / "store").is_dir():
        return f"{root} holds no store; is it {root / 'store'} that you mean?"
    return f"{root} holds no store: neither store.json nor units are in it"
