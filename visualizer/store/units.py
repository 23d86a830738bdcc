"""One unit on its way to the disk: its rows, their tensors, and the order of what is written."""

from __future__ import annotations

import contextlib
import json
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from visualizer._background import give_way
from visualizer.attention.unobserved import unobserved
from visualizer.store.beside import beside
from visualizer.store.durable import Owner, sync_file, sync_folder
from visualizer.store.encoding import encode
from visualizer.store.index import Row, as_read, facts_of, render_index, seal
from visualizer.store.layout import Layout, Place
from visualizer.store.pieces import Known, Piece, Ref
from visualizer.store.shards import Written, key_of, write_shard

__all__ = ["Final", "Memory", "OnWritten", "Unit", "commit", "render_about"]


_T = TypeVar("_T")

Memory = Literal["others", "watched", "ours"]
"""Whose the memory of values is, before it is on the disk: others may write to it, so that it is
copied; they may, and what they changed is left out; they do not."""

OnWritten = Callable[[Row], None]
"""Is told a row that is on the disk, as one that was read would be."""


@dataclass(frozen=True, slots=True, eq=False)
class Added:
    """A row of a unit.

    Attributes:
        facts: What stands in the index, with its tree.
        refs: The pieces that the tree refers to.
        on_written: Is told the row once it is on the disk.
    """

    facts: Mapping[str, Any]
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
        is_shared: Whether others have its memory.
        refs: The pieces in it, once it was made.
    """

    make: Callable[[], Row]
    on_written: OnWritten | None
    is_shared: bool
    refs: list[Ref] | None = None


@dataclass(slots=True, eq=False, weakref_slot=True)
class Unit:
    """Rows that are written together.

    Attributes:
        known: What was added before, here or to other units; the same bytes are written once.
        memory: Whose the values' memory is.
        rows: Its values.
        refs: The pieces of memory that it writes.
        nbytes: Their bytes, and about those of the rows that are not made yet.
        later: What makes further rows.
    """

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
            before = len(self.refs)
            self._expect_change(self._add(row, on_written))
            new = self.refs[before:]
            self.nbytes += sum(ref.piece.nbytes for ref in new if ref.piece is not None)

    def add_later(
        self,
        nbytes: int,
        make: Callable[[], Row],
        on_written: OnWritten | None = None,
        *,
        is_shared: bool = True,
    ) -> Callable[[], None]:
        """Add a value that is made when the unit is written.

        Args:
            nbytes: About how much it has.
            make: Makes it.
            on_written: Is told the row once it is on the disk.
            is_shared: Whether others have its memory, and may change it at any time. What nobody
                has need not be watched, until what is returned here was called.
        Returns:
            What makes it now, as it must be before somebody may change the value.
        """
        later = Later(make, on_written, is_shared)
        self.later.append(later)
        self.nbytes += nbytes
        unit = weakref.ref(self)  # who waits for that need not keep what was written long ago

        def make_now() -> None:
            found = unit()
            if found is not None:
                found._make(later, is_shared=True)

        return make_now

    def make_rows(self) -> None:
        """Make the rows that wait for that."""
        with unobserved():
            for later in _giving_way(self.later):
                self._make(later, later.is_shared)
        self.later.clear()

    def _make(self, later: Later, is_shared: bool) -> None:
        with self._lock:
            if later.refs is None:
                row = later.make()
                give_way()
                later.refs = self._add(row, later.on_written)
        if is_shared:
            self._expect_change(later.refs)

    def _add(self, row: Row, on_written: OnWritten | None) -> list[Ref]:
        """Add a row, and return the pieces in it."""
        found: list[Ref] = []

        def add_piece(piece: Piece) -> dict[str, Any]:
            ref = self._find(piece)
            found.append(ref)
            return ref.facts

        facts = facts_of(row)
        with unobserved():
            facts["value"] = encode(row.value, add_piece)
        self.rows.append(Added(facts, found, on_written))
        return found

    def _expect_change(self, refs: Iterable[Ref]) -> None:
        if self.memory == "watched":
            for ref in refs:
                ref.expect_change()

    def _find(self, piece: Piece) -> Ref:
        ref = Ref(piece)
        if piece.wait is None:  # or else it is not there yet: a GPU's
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


def commit(
    layout: Layout, owner: Owner, place: Place, unit: Unit, final: Final | None = None
) -> list[Row]:
    """Write a unit. When this returns, it survives a crash; when it raises, there is none of it.

    (But where the last thing failed, the root's fsync, there may be all of it.)

    Args:
        layout: Of the store.
        owner: The writer.
        place: Where.
        unit: What is written; its memory is let go of.
        final: With the last unit, what makes the store whole.
    Returns:
        Rows that are left out, since somebody wrote to their memory meanwhile.
    Raises:
        OSError: It can't be written.
    """
    shard = owner.folder / layout.shard(place.number).name
    index = owner.folder / layout.index_of(place.number).name
    about = owner.folder / layout.about.name
    made = [about, index, shard]
    try:
        with contextlib.ExitStack() as at_work:
            written, changed = _write_tensors(shard, place.number, unit, owner.mode, at_work)
            rows = _giving_way(added.facts for added in unit.rows)
            index.write_bytes(render_index(place, written, rows))
            if final is not None:
                about.write_bytes(render_about(final.about, final.units))
        sync_file(index)
        if final is not None:
            sync_file(about)
        if written is not None:
            made.append(layout.shard(place.number))
            shard.replace(layout.shard(place.number))
            sync_folder(layout.shards)
        made.insert(0, layout.index_of(place.number))
        index.replace(layout.index_of(place.number))  # from here on the unit is there
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
            added.on_written(as_read(added.facts))
    return changed


def _giving_way(facts: Iterable[_T]) -> Iterator[_T]:
    """Yield values, letting others go first in between if this thread is in the background."""
    for each in facts:
        give_way()
        yield each


def render_about(about: Mapping[str, Any], units: Sequence[int] | None) -> bytes:
    """Return the bytes of store.json.

    Args:
        about: The facts.
        units: All units, once the store is whole; None before.
    """
    return seal([json.dumps({**about, "units": None if units is None else list(units)})])


def _write_tensors(
    shard: Path, number: int, unit: Unit, mode: int, at_work: contextlib.ExitStack
) -> tuple[Written | None, list[Row]]:
    """Write a unit's tensors, without those that were written to in memory meanwhile.

    They are hashed while the disk is at work, which is waited for where `at_work` is closed.
    """
    for ref in unit.refs:
        if ref.piece is not None and ref.piece.wait is not None and not ref.piece.wait():
            ref.let_go()
    while True:
        left_out = [Row(**added.facts) for added in unit.rows if added.is_lost]
        refs = [ref for ref in unit.refs if ref.piece is not None]
        written = None
        if refs:
            written = write_shard(shard, [ref.piece for ref in refs if ref.piece is not None])
            shard.chmod(mode)
            at_work.enter_context(beside(lambda: sync_file(shard)))
        if unit.memory != "watched":
            for ref in refs:
                ref.hash()
            break
        if not _let_go_of_changed(refs):
            break
        at_work.close()
    unit.rows = [added for added in unit.rows if not added.is_lost]
    for index, ref in enumerate(refs):
        assert written is not None
        ref.settle(number, key_of(index), written.offsets[key_of(index)])
    return written, left_out


def _let_go_of_changed(refs: Iterable[Ref]) -> bool:
    """Let go of memory that was written to since it was added; tell whether there is any."""
    found = False
    for ref in refs:
        while ref.piece is not None and not ref.is_intact():
            ref.turn_to_spare()
            found = True
    return found
