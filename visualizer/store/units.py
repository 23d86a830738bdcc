"""One unit on its way to the disk: its rows, their tensors, and the order of what is written."""

from __future__ import annotations

import contextlib
import json
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from visualizer.store.beside import beside
from visualizer.store.durable import Owner, sync_file, sync_folder
from visualizer.store.encoding import encode
from visualizer.store.index import Row, as_read, render_index, seal
from visualizer.store.layout import Layout
from visualizer.store.pieces import Known, Piece, Ref
from visualizer.store.shards import Written, key_of, write_shard

__all__ = ["Final", "Memory", "OnWritten", "Unit", "commit", "render_about"]


Memory = Literal["others", "watched", "ours"]
"""Whose the memory of values is, before it is on the disk: others may write to it, so that it is
copied; they may, and what they changed is left out; they do not."""

OnWritten = Callable[[Row], None]
"""Is told a row that is on the disk, as one that was read would be."""


@dataclass(frozen=True, slots=True, eq=False)
class Added:
    """A row of a unit.

    Attributes:
        row: It, with references in its tree.
        refs: They.
        on_written: Is told the row once it is on the disk.
    """

    row: Row
    refs: list[Ref]
    on_written: OnWritten | None

    @property
    def is_lost(self) -> bool:
        """Whether a part of it was not written, and never will be."""
        return any(ref.is_lost for ref in self.refs)


@dataclass(slots=True, eq=False)
class Later:
    """A row that is made when its unit is written, or before that if need be.

    Attributes:
        make: Makes it.
        on_written: Is told the row once it is on the disk.
        is_made: Whether it was made.
    """

    make: Callable[[], Row]
    on_written: OnWritten | None
    is_made: bool = False


@dataclass(slots=True, eq=False, weakref_slot=True)
class Unit:
    """Rows that are written together.

    Attributes:
        number: The unit's.
        generation: Which writing of the store it belongs to.
        known: What was added before, here or to other units; the same bytes are written once.
        memory: Whose the values' memory is.
        rows: Its values.
        refs: The pieces of memory that it writes.
        nbytes: Their bytes, and about those of the rows that are not made yet.
        later: What makes further rows.
    """

    number: int
    generation: int
    known: Known
    memory: Memory = "others"
    rows: list[Added] = field(default_factory=list)
    refs: list[Ref] = field(default_factory=list)
    nbytes: int = 0
    later: list[Later] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, row: Row, on_written: OnWritten | None = None) -> None:
        """Add a value.

        Args:
            row: Its facts, with the value itself in the place of its tree.
            on_written: Is told the row once it is on the disk.
        """
        with self._lock:
            self.nbytes += self._add(row, on_written)

    def add_later(
        self, nbytes: int, make: Callable[[], Row], on_written: OnWritten | None = None
    ) -> Callable[[], None]:
        """Add a value that is made when the unit is written.

        Args:
            nbytes: About how much it has.
            make: Makes it.
            on_written: Is told the row once it is on the disk.
        Returns:
            What makes it now, as it must be before somebody may change the value.
        """
        later = Later(make, on_written)
        self.later.append(later)
        self.nbytes += nbytes
        unit = weakref.ref(self)  # who waits for that need not keep what was written long ago

        def make_now() -> None:
            found = unit()
            if found is not None:
                found._make(later)

        return make_now

    def make_rows(self) -> None:
        """Make the rows that wait for that."""
        for later in self.later:
            self._make(later)
        self.later.clear()

    def _make(self, later: Later) -> None:
        with self._lock:
            if not later.is_made:
                later.is_made = True
                self._add(later.make(), later.on_written)

    def _add(self, row: Row, on_written: OnWritten | None) -> int:
        found: list[Ref] = []

        def add_piece(piece: Piece) -> Ref:
            found.append(self._find(piece))
            return found[-1]

        before = len(self.refs)
        tree = encode(row.value, add_piece)
        self.rows.append(Added(replace(row, value=tree), found, on_written))
        return sum(ref.piece.nbytes for ref in self.refs[before:] if ref.piece is not None)

    def _find(self, piece: Piece) -> Ref:
        ref = Ref(piece)
        if piece.wait is None:  # or else it is not there yet: a GPU's
            if self.memory != "ours":
                ref.hash()
            same = self.known.find(ref)
            if same is not ref:
                if self.memory == "watched" and same.piece is not None:
                    same.spare.append(piece)
                return same
            if self.memory == "others":
                ref.piece = piece.copy()
        self.refs.append(ref)
        return ref

    def let_go(self) -> None:
        """Let go of the memory."""
        for ref in self.refs:
            ref.let_go()


@dataclass(frozen=True, slots=True)
class Final:
    """What makes a store whole, with its last unit.

    Attributes:
        about: The facts of the store.
        units: All units that it has.
    """

    about: Mapping[str, Any]
    units: tuple[int, ...]


def commit(layout: Layout, owner: Owner, unit: Unit, final: Final | None = None) -> list[Row]:
    """Write a unit. When this returns, it survives a crash; when it raises, there is none of it.

    (But where the last thing failed, the root's fsync, there may be all of it.)

    Args:
        layout: Of the store.
        owner: The writer.
        unit: What is written; its memory is let go of.
        final: With the last unit, what makes the store whole.
    Returns:
        Rows that are left out, since somebody wrote to their memory meanwhile.
    Raises:
        OSError: It can't be written.
    """
    shard = owner.folder / layout.shard(unit.number).name
    index = owner.folder / layout.index_of(unit.number).name
    about = owner.folder / layout.about.name
    made = [about, index, shard]
    try:
        with contextlib.ExitStack() as at_work:
            written, changed = _write_tensors(shard, unit, owner.mode, at_work)
            rows = [added.row for added in unit.rows]
            index.write_bytes(render_index(unit.number, unit.generation, written, rows))
            if final is not None:
                about.write_bytes(render_about(final.about, final.units))
        sync_file(index)
        if final is not None:
            sync_file(about)
        if written is not None:
            made.append(layout.shard(unit.number))
            shard.replace(layout.shard(unit.number))
            sync_folder(layout.shards)
        made.insert(0, layout.index_of(unit.number))
        index.replace(layout.index_of(unit.number))  # from here on the unit is there
        sync_folder(layout.index)
        if final is not None:
            made.clear()  # for what store.json lists is not removed
            about.replace(layout.about)
            sync_folder(layout.root)
    except BaseException:
        for file in made:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        raise
    finally:
        unit.let_go()
    for added in unit.rows:
        if added.on_written is not None:
            added.on_written(as_read(added.row))
    return changed


def render_about(about: Mapping[str, Any], units: Sequence[int] | None) -> bytes:
    """Return the bytes of store.json.

    Args:
        about: The facts.
        units: All units, once the store is whole; None before.
    """
    return seal([json.dumps({**about, "units": None if units is None else list(units)})])


def _write_tensors(
    shard: Path, unit: Unit, mode: int, at_work: contextlib.ExitStack
) -> tuple[Written | None, list[Row]]:
    """Write a unit's tensors, without those that were written to in memory meanwhile.

    They are hashed while the disk is at work, which is waited for where `at_work` is closed.
    """
    for ref in unit.refs:
        if ref.piece is not None and ref.piece.wait is not None and not ref.piece.wait():
            ref.let_go()
    while True:
        left_out = [added.row for added in unit.rows if added.is_lost]
        refs = [ref for ref in unit.refs if ref.piece is not None]
        written = None
        if refs:
            written = write_shard(shard, [ref.piece for ref in refs if ref.piece is not None])
            shard.chmod(mode)
            at_work.enter_context(beside(lambda: sync_file(shard)))
        for ref in refs:
            ref.hash()
        if not (unit.memory == "watched" and _let_go_of_changed(unit.refs)):
            break
        at_work.close()
    unit.rows = [added for added in unit.rows if not added.is_lost]
    for number, ref in enumerate(refs):
        assert written is not None
        ref.settle(unit.number, key_of(number), written.offsets[key_of(number)])
    return written, left_out


def _let_go_of_changed(refs: Iterable[Ref]) -> bool:
    """Let go of memory that was written to since it was added; tell whether there is any."""
    found = False
    for ref in refs:
        while ref.piece is not None and ref.digest not in (None, ref.piece.hash()):
            ref.turn_to_spare()
            found = True
    return found
