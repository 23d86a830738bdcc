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
from visualizer.store.reader import Damage, Store
from visualizer.store.shards import hash_slice

__all__ = ["Report", "name_of", "verify"]

_MOST_NAMES = 100
_LONGEST = 1000


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
        quarantine: Move damaged units into the store's `quarantine/`.
    Returns:
        What is wrong, by unit; `report.ok` where nothing is.
    Raises:
        NotAStoreError: There is no store.
        StoreWriteError: A damaged unit can't be moved.
    """
    store = Store(path)
    damages = list(store.damages)
    digests: dict[tuple[int, int, int], str | None] = {}
    for unit in store.units.values():
        try:
            _check_shard(store, unit)
        except DamagedError as error:
            damages.append(Damage(unit.unit, str(error)))
            continue
        bad = [ref for ref in _refs_of_unit(unit) if not _is_intact(store, ref, digests)]
        if bad:
            file = store.layout.shard(unit.unit)
            where = ", ".join(f"{ref['at']} to {ref['at'] + ref['bytes']}" for ref in bad[:3])
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            what = f"bytes {where}{more} of {file} are not what was written"
            damages.append(Damage(unit.unit, what))
    broken = {damage.unit for damage in damages if damage.unit is not None}
    lost = [
        name_of(row)
        for row in store.rows
        if any(_is_lost(store, ref, broken, digests) for ref in refs_in(row.value))
    ]
    if quarantine:
        for number in sorted(broken):
            _put_aside(store, number)
    tensors = sum(1 for digest in digests.values() if digest is not None)
    return Report(
        store.layout.root,
        store.is_whole,
        len(store.units),
        tensors,
        store.nbytes,
        tuple(damages),
        tuple(dict.fromkeys(lost)),
    )


def refs_in(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the references to tensors in a tree."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            if "xxh3_128" in node:
                yield node
            else:
                waiting.extend(node.values())


def _refs_of_unit(unit: UnitIndex) -> Iterator[Mapping[str, Any]]:
    """Yield the references of a unit's rows to its own shard."""
    for row in unit.rows:
        for ref in refs_in(row.value):
            if ref.get("unit") == unit.unit:
                yield ref


def _check_shard(store: Store, unit: UnitIndex) -> None:
    """Make sure that a shard is there, with its size and its header."""
    if unit.shard_bytes == 0:
        return
    file = store.layout.shard(unit.unit)
    store.layout.check_inside(file, unit.unit)
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DamagedError(f"{file} is missing: {error.strerror}") from None
    if size != unit.shard_bytes:
        raise DamagedError(f"{file} has {size} bytes; {unit.shard_bytes} were written")
    if hash_slice(file, 0, unit.header_bytes) != unit.header_hash:
        raise DamagedError(f"the header of {file} is not what was written")


def _is_intact(
    store: Store, ref: Mapping[str, Any], digests: dict[tuple[int, int, int], str | None]
) -> bool:
    place = (ref["unit"], ref["at"], ref["bytes"])
    if place not in digests:
        try:
            digests[place] = hash_slice(store.layout.shard(ref["unit"]), ref["at"], ref["bytes"])
        except DamagedError:
            digests[place] = None
    return digests[place] == ref["xxh3_128"]


def _is_lost(
    store: Store,
    ref: Mapping[str, Any],
    broken: set[int],
    digests: Mapping[tuple[int, int, int], str | None],
) -> bool:
    """Tell whether a value's part can't be read."""
    if ref["unit"] not in store.units:
        return True
    place = (ref["unit"], ref["at"], ref["bytes"])
    if place in digests:
        return digests[place] != ref["xxh3_128"]
    return ref["unit"] in broken  # a shard that was not read any further


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
            if file.exists():
                file.replace(layout.quarantine / file.name)
        for folder in (layout.index, layout.shards, layout.quarantine):
            sync_folder(folder)
    except OSError as error:
        raise StoreWriteError(
            f"unit {unit_name(number)} of {layout.root} is damaged and can't be put aside: {error}"
        ) from error
