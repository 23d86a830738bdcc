"""Is what a store holds what was written to it?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visualizer._block.budget import in_words
from visualizer._printable import counted, printable, shortened
from visualizer.errors import DamagedError, StoreWriteError
from visualizer.store.durable import sync_folder
from visualizer.store.index import Row, UnitIndex
from visualizer.store.layout import unit_name
from visualizer.store.reader import Damage, Place, Store
from visualizer.store.shards import hash_slices

__all__ = ["Report", "name_of", "verify"]

_MOST_NAMES = 100
_LONGEST = 1000
_PARTS = ("unit", "at", "bytes", "xxh3_128")
"""What only a reference has; one that somebody wrote may lack some."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found.

    Attributes:
        path: The store's folder.
        is_whole: Whether writing it came to its end. Where it was cut off, what was committed
            until then may be in order all the same.
        units: How many units were looked at.
        tensors: How many tensors.
        nbytes: Bytes of their files.
        damages: What is wrong, a line for each unit.
        lost: The values that can't be read for it, as far as their names are known.
    """

    path: Path
    is_whole: bool
    units: int
    tensors: int
    nbytes: int
    damages: tuple[Damage, ...]
    lost: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that was committed is what was written."""
        return not self.damages

    def __str__(self) -> str:
        return "\n".join(
            [self._headline(), *(shortened(line, _LONGEST) for line in self._details())]
        )

    def _headline(self) -> str:
        held = ", ".join(
            (counted(self.units, "unit"), counted(self.tensors, "tensor"), in_words(self.nbytes))
        )
        if not self.ok:
            how = f"{len(self.damages)} damaged"
        elif self.is_whole:
            how = "all as they were written"
        else:
            how = "all as they were written, but writing was cut off, and more was to come"
        return f"{printable(self.path)}: {held}: {how}"

    def _details(self) -> list[str]:
        found = [f"  {damage}" for damage in self.damages]
        found += [f"  can't be read: {name}" for name in self.lost[:_MOST_NAMES]]
        if len(self.lost) > _MOST_NAMES:
            found.append(f"  and {len(self.lost) - _MOST_NAMES} more, in the report's .lost")
        return found


def verify(path: str | os.PathLike[str], *, quarantine: bool = False) -> Report:
    """Read everything in a store, and hold it against the hashes that were written with it.

    Args:
        path: Its folder.
        quarantine: Move damaged units into the store's `quarantine/`, whole; `lost` has all that
            they held.
    Returns:
        What is wrong, by unit; `report.ok` where nothing is.
    Raises:
        NotAStoreError: There is no store.
        StoreWriteError: A unit can't be put aside.
    """
    while True:
        store = Store(path)
        damages, intact, lost = _check(store)
        if not damages or not store.was_replaced:
            break  # or else it was replaced in the middle of this
    if quarantine:
        aside = {damage.unit for damage in damages if damage.unit is not None}
        lost += [
            name_of(row)
            for unit in store.units.values()
            for row in unit.rows
            if unit.unit in aside or not aside.isdisjoint(_units_of(row))
        ]
        for number in sorted(aside):
            _put_aside(store, number)
    return Report(
        store.layout.root,
        store.is_whole,
        len(store.units),
        intact,
        store.nbytes,
        tuple(damages),
        tuple(dict.fromkeys(lost)),
    )


def _check(store: Store) -> tuple[list[Damage], int, list[str]]:
    """Return what is damaged, how many tensors are not, and the values that can't be read."""
    found = [Damage(damage.unit, damage.what) for damage in store.damages]
    places: dict[int, set[Place]] = {}
    for row in store.rows:
        for place in _places(store, row):
            if place is not None:
                places.setdefault(place[0], set()).add(place)
    bad: set[Place | None] = {None}
    for unit in store.units.values():
        broken, what = _check_shard(store, unit, sorted(places.get(unit.unit, ())))
        bad |= broken
        found += [Damage(unit.unit, each) for each in what]
    known = {damage.unit for damage in found}
    lost = []
    for unit in store.units.values():
        for row in unit.rows:
            if not bad.isdisjoint(_places(store, row)):
                lost.append(name_of(row))
                if known.isdisjoint(_units_of(row)) and unit.unit not in known:
                    index = store.layout.index_of(unit.unit)
                    found.append(Damage(unit.unit, f"{index} has a row that leads nowhere"))
                    known.add(unit.unit)
    return _by_unit(found), sum(map(len, places.values())) - len(bad) + 1, lost


def _places(store: Store, row: Row) -> set[Place | None]:
    """Return where the parts of a value are; None is one of them if one leads nowhere."""
    found: set[Place | None] = set()
    for ref in refs_in(row.value):
        try:
            found.add(store.place_of(ref))
        except DamagedError:
            found.add(None)
    return found


def _units_of(row: Row) -> set[int | None]:
    named = (ref.get("unit") for ref in refs_in(row.value))
    return {unit for unit in named if type(unit) is int}


def _by_unit(damages: list[Damage]) -> list[Damage]:
    """Put together what is said of the same unit."""
    found: dict[int | None, list[str]] = {}
    for damage in damages:
        found.setdefault(damage.unit, []).append(damage.what)
    return [Damage(unit, "; ".join(dict.fromkeys(what))) for unit, what in found.items()]


def refs_in(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the references to tensors in a tree."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            if not node.keys().isdisjoint(_PARTS):
                yield node
            else:
                waiting.extend(node.values())


def _check_shard(
    store: Store, unit: UnitIndex, places: list[Place]
) -> tuple[set[Place], list[str]]:
    """Return which tensors of a shard are not what was written, and what is to be said of it."""
    if unit.shard_bytes == 0:
        return set(places), []
    file, what = store.layout.shard(unit.unit), []
    try:
        store.layout.check_inside(file, unit.unit)
        parts = [(0, unit.header_bytes), *((at, nbytes) for _, at, nbytes, _ in places)]
        header, *digests = hash_slices(file, parts)
    except DamagedError as error:
        return set(places), [str(error)]
    if header != unit.header_hash:
        what.append(f"the header of {file} is not what was written")
    checked = zip(places, digests, strict=True)
    bad = [place for place, digest in checked if digest != place[3]]
    if bad:
        where = ", ".join(f"{at} to {at + nbytes}" for _, at, nbytes, _ in bad[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        what.append(f"bytes {where}{more} of {file} are not what was written")
    return set(bad), what


def name_of(row: Row) -> str:
    """Return what messages call a value."""
    where = "the model" if row.module_path == "" else row.module_path or row.function
    what = row.variable if row.kind == "local" else row.kind
    if row.kind == "capture":
        return "what the capture was asked for, its annotations and explanations"
    return f"{what} of {where or 'no module'}, call {row.call}"


def _put_aside(store: Store, number: int) -> None:
    layout = store.layout
    try:
        layout.quarantine.mkdir(exist_ok=True)
        for file in (layout.index_of(number), layout.shard(number)):
            if os.path.lexists(file):
                file.replace(layout.quarantine / file.name)
        for folder in (layout.index, layout.shards, layout.quarantine):
            if folder.is_dir():
                sync_folder(folder)
    except OSError as error:
        raise StoreWriteError(
            f"unit {unit_name(number)} can't be put aside into {layout.quarantine}: {error}"
        ) from error
