"""Where a new store begins: its folders, its place behind what is there, its first store.json."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visualizer.errors import DamagedError, StoreExistsError, StoreWriteError
from visualizer.store.durable import Owner
from visualizer.store.index import parse_index, parse_sealed
from visualizer.store.layout import Layout
from visualizer.store.units import render_about

__all__ = ["announce", "check_place", "make_folders", "next_place", "own"]


def make_folders(layout: Layout, overwrite: bool) -> list[Path]:
    """Make the store's folders; return those in which there is a new one because of that."""
    check_place(layout, overwrite)
    above = [layout.root, *layout.root.parents]
    new_in = [parent for made, parent in itertools.pairwise(above) if not made.exists()]
    for folder in (layout.shards, layout.index, layout.tmp):
        folder.mkdir(parents=True, exist_ok=True)
    return new_in


def check_place(layout: Layout, overwrite: bool) -> None:
    """Make sure that nothing is written over but a store that may be."""
    root = layout.root
    if root.exists() and not root.is_dir():
        raise StoreExistsError(f"{root} is a file; give the path of a folder that is to be made")
    is_mixed = root.exists() and not all(map(layout.is_beginning, root.iterdir()))
    is_there = layout.is_there()  # after that: another process may begin one meanwhile
    if is_there and not overwrite and not _is_empty(layout):
        raise StoreExistsError(
            f"{root} holds a store already. Give another path, or overwrite=True to replace it; "
            f"it stays until the new one is whole"
        )
    if is_mixed and not is_there:
        raise StoreExistsError(
            f"{root} has other files in it, and nothing is mixed with them. Give a path that does "
            f"not exist, as {root / 'run'}"
        )


def next_place(layout: Layout) -> tuple[int, int]:
    """Return the generation, and the number of the first unit."""
    if _is_empty(layout):
        return 1, 0
    return _last_generation(layout) + 1, max(_units(layout), default=-1) + 1


def _units(layout: Layout) -> set[int]:
    folders = (layout.index, layout.shards, layout.quarantine)
    return {unit for folder in folders for unit in layout.units_in(folder)}


def _is_empty(layout: Layout) -> bool:
    """Tell whether a store was begun, and then nothing was written to it: there is none to lose."""
    if _units(layout):
        return False
    try:
        (about,) = parse_sealed(layout.about.read_bytes(), "store.json")
        return about["units"] is None
    except (OSError, ValueError, TypeError, KeyError, DamagedError):
        return False


def _last_generation(layout: Layout) -> int:
    """Return the generation that is there; 0 where there is none."""
    try:
        (about,) = parse_sealed(layout.about.read_bytes(), "store.json")
        return int(about["generation"])
    except (OSError, ValueError, KeyError, DamagedError):
        pass
    last = 0
    for unit in layout.units_in(layout.index):
        with contextlib.suppress(OSError, ValueError, DamagedError):
            last = max(last, parse_index(layout.index_of(unit).read_bytes(), unit).generation)
    return max(last, 1 if layout.is_there() else 0)


def own(layout: Layout) -> Owner:
    """Become the store's only writer.

    Raises:
        StoreWriteError: There is one.
    """
    try:
        return Owner(layout.tmp, is_alone=True)
    except BlockingIOError:
        raise StoreWriteError(
            f"somebody else, in this process or another, is writing to {layout.root} at this "
            f"moment. Give each a path of its own, or wait for the other: "
            f"captured.save(…, background=True).wait()"
        ) from None


def announce(layout: Layout, owner: Owner, about: Mapping[str, Any]) -> None:
    """Say what this is going to be."""
    aside = owner.folder / layout.about.name
    aside.write_bytes(render_about(about, None))
    aside.replace(layout.about)
