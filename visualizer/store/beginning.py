"""Where a new store begins: its folders, its place behind what is there, its first store.json."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visualizer.errors import DamagedError, StoreExistsError, StoreWriteError
from visualizer.store.durable import Owner
from visualizer.store.index import parse_index, parse_sealed
from visualizer.store.layout import Layout, Place
from visualizer.store.units import Final, render_about

__all__ = ["Begun", "Claim", "begin", "check_access", "check_place"]


class Claim:
    """Keeps a path to one writer of this process, also before that has made its folder.

    Args:
        layout: Of the store.
    Raises:
        StoreWriteError: Another one has it.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        with _lock:
            if layout.root in _claimed:
                raise _somebody_writes(layout)
            _claimed.add(layout.root)
            self._is_ours = True

    def release(self) -> None:
        """Give it up."""
        with _lock:
            if self._is_ours:
                self._is_ours = False
                _claimed.discard(self._layout.root)


_claimed: set[Path] = set()
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_claimed.clear)


@dataclass(frozen=True, slots=True)
class Begun:
    """A store that was begun.

    Attributes:
        owner: Its writer.
        generation: Which writing of the store this is.
        first: The number of its first unit.
        new_in: Folders in which there is a new one because of it.
        about: The facts of the store.
    """

    owner: Owner
    generation: int
    first: int
    new_in: Sequence[Path]
    about: Mapping[str, Any]

    def place(self, unit: int) -> Place:
        """Return where the writer's so many-th unit is written."""
        return Place(self.first + unit, self.generation)

    def final(self, units: int) -> Final:
        """Return what makes a store whole that has so many units."""
        return Final(self.about, tuple(range(self.first, self.first + units)))


def begin(layout: Layout, overwrite: bool, about: Mapping[str, Any]) -> Begun:
    """Make a store that has nothing in it yet.

    Args:
        layout: Of the store.
        overwrite: Whether another one may be there, which stays until this one is whole.
        about: What `store.json` says of it.
    Raises:
        StoreExistsError: Something else is there.
        StoreWriteError: Somebody else is writing there.
        OSError: It can't be made.
    """
    check_place(layout, overwrite)
    new_in = _make_folders(layout)
    owner = _own(layout)
    try:
        check_place(layout, overwrite)  # who wrote meanwhile is done now
        generation, first = _next_place(layout)
        about = {**about, "generation": generation}
        if generation == 1:
            _announce(layout, owner, about)
    except BaseException:
        owner.release()
        raise
    return Begun(owner, generation, first, new_in, about)


def check_place(layout: Layout, overwrite: bool) -> None:
    """Make sure that nothing is written over but a store that may be.

    Raises:
        StoreExistsError: Something else is there.
        OSError: Nothing can be there.
    """
    root = layout.root
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        if not root.exists():  # a folder above it is none
            raise
        raise StoreExistsError(
            f"{root} is a file; give the path of a folder that is to be made"
        ) from None
    is_mixed = not all(layout.is_beginning(root / name) for name in names)
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


def check_access(layout: Layout) -> None:
    """Make sure, as far as that can be seen without trying, that a store can be made.

    Raises:
        StoreWriteError: It can't.
    """
    root = layout.root
    there = next((folder for folder in (root, *root.parents) if os.path.exists(folder)), root)
    if not os.access(there, os.W_OK | os.X_OK):
        raise StoreWriteError(
            f"{root} can't be written to: {there} is read-only, or somebody else's. Give another "
            f"path, or change its permissions"
        )


def _make_folders(layout: Layout) -> list[Path]:
    """Make the store's folders; return those in which there is a new one because of that."""
    new_in = []
    folder = layout.root
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
        new_in.append(folder)
    for folder in (layout.shards, layout.index, layout.tmp):
        folder.mkdir(parents=True, exist_ok=True)
    return new_in


def _next_place(layout: Layout) -> tuple[int, int]:
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


def _own(layout: Layout) -> Owner:
    """Become the store's only writer.

    Raises:
        StoreWriteError: There is one.
    """
    try:
        return Owner(layout.tmp, is_alone=True)
    except BlockingIOError:
        raise _somebody_writes(layout) from None


def _somebody_writes(layout: Layout) -> StoreWriteError:
    return StoreWriteError(
        f"somebody else, in this process or another, is writing to {layout.root} at this "
        f"moment. Give each a path of its own, or wait for the other: "
        f"captured.save(…, background=True).wait()"
    )


def _announce(layout: Layout, owner: Owner, about: Mapping[str, Any]) -> None:
    """Say what this is going to be."""
    aside = owner.folder / layout.about.name
    aside.write_bytes(render_about(about, None))
    aside.replace(layout.about)
