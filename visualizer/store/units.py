"""One unit on its way to the disk: its rows, their tensors, and the order of what is written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from visualizer.store.durable import Owner, sync_file, sync_folder
from visualizer.store.index import Row, render_index, seal
from visualizer.store.layout import Layout
from visualizer.store.pieces import Piece, Ref
from visualizer.store.shards import Written, key_of, write_shard
from visualizer.store.values import encode

__all__ = ["Content", "Final", "Unit", "commit", "render_about"]


@dataclass(slots=True, eq=False)
class Unit:
    """Rows that are written together.

    Attributes:
        number: The unit's.
        generation: Which writing of the store it belongs to.
        is_guarded: Whether others may write to the memory before it is on the disk. Then it is
            hashed again.
        rows: Its values, and the references in each.
        refs: The pieces of memory that it writes.
        nbytes: Their bytes.
        later: What makes further rows, when the unit is written.
        owned: How many of the pieces are copies.
    """

    number: int
    generation: int
    is_guarded: bool = False
    rows: list[tuple[Row, list[Ref]]] = field(default_factory=list)
    refs: list[Ref] = field(default_factory=list)
    nbytes: int = 0
    later: list[Callable[[], Row]] = field(default_factory=list)
    owned: int = 0

    def add(self, row: Row, known: dict[Content, Ref]) -> None:
        """Add a value.

        Args:
            row: Its facts, with the value itself in the place of its tree.
            known: What was added before, here or to other units; the same bytes are written once.
        """
        found: list[Ref] = []

        def add_piece(piece: Piece) -> Ref:
            ref = self._find(piece, known)
            found.append(ref)
            return ref

        self.rows.append((replace(row, value=encode(row.value, add_piece)), found))

    def add_later(self, nbytes: int, make: Callable[[], Row]) -> None:
        """Add a value that is made when the unit is written."""
        self.later.append(make)
        self.nbytes += nbytes

    def make_rows(self, known: dict[Content, Ref]) -> None:
        """Make the rows that wait for that."""
        while self.later:
            self.add(self.later.pop(0)(), known)

    def own(self) -> None:
        """Copy what waits to be written: its values are to be those of the moment it was added."""
        for ref in self.refs[self.owned :]:
            if ref.piece is not None and ref.piece.wait is None:
                ref.piece = ref.piece.copy()
        self.owned = len(self.refs)

    def _find(self, piece: Piece, known: dict[Content, Ref]) -> Ref:
        ref = Ref(piece, piece.hash() if piece.wait is None else None)  # not there yet: a GPU's
        if ref.digest is not None:
            same = known.setdefault((ref.digest, piece.dtype, piece.shape), ref)
            if same is not ref and not same.is_lost:
                return same
        self.refs.append(ref)
        self.nbytes += piece.nbytes
        return ref

    def let_go(self) -> None:
        """Let go of the memory."""
        for ref in self.refs:
            ref.let_go()


Content = tuple[str, str, tuple[int, ...]]
"""The hash of a piece of memory, its type and its shape."""


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
    try:
        written, changed = _write_tensors(shard, unit)
        rows = [row for row, _ in unit.rows]
        index.write_bytes(render_index(unit.number, unit.generation, written, rows))
        if written is not None:
            shard.chmod(owner.mode)
            sync_file(shard)
        sync_file(index)
        if final is not None:
            about.write_bytes(render_about(final.about, final.units))
            sync_file(about)
        if written is not None:
            shard.replace(layout.shard(unit.number))
            sync_folder(layout.shards)
        index.replace(layout.index_of(unit.number))  # from here on the unit is there
        if final is not None:
            about.replace(layout.about)
        sync_folder(layout.index)
        if final is not None:
            sync_folder(layout.root)
    except BaseException:
        for file in (shard, index, about):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        raise
    finally:
        unit.let_go()
    return changed


def render_about(about: Mapping[str, Any], units: Sequence[int] | None) -> bytes:
    """Return the bytes of store.json.

    Args:
        about: The facts.
        units: All units, once the store is whole; None before.
    """
    return seal([json.dumps({**about, "units": None if units is None else list(units)})])


def _write_tensors(shard: Path, unit: Unit) -> tuple[Written | None, list[Row]]:
    """Write a unit's tensors, without those that were written to in memory meanwhile."""
    for ref in unit.refs:
        if ref.piece is not None and ref.piece.wait is not None and not ref.piece.wait():
            ref.let_go()
    while True:
        if unit.is_guarded:
            _let_go_of_changed(unit.refs)
        left_out = [row for row, refs in unit.rows if any(ref.is_lost for ref in refs)]
        pieces = [(ref, ref.piece) for ref in unit.refs if ref.piece is not None]
        for ref, piece in pieces:
            ref.digest = ref.digest or piece.hash()
        written = write_shard(shard, [piece for _, piece in pieces]) if pieces else None
        if not (unit.is_guarded and _let_go_of_changed(unit.refs)):
            break
    if left_out:
        unit.rows = [(row, refs) for row, refs in unit.rows if row not in left_out]
    for number, (ref, _) in enumerate(pieces):
        assert written is not None
        ref.settle(unit.number, key_of(number), written.offsets[key_of(number)])
    return written, left_out


def _let_go_of_changed(refs: Iterable[Ref]) -> bool:
    """Let go of memory that was written to since it was added; tell whether there is any."""
    changed = [
        ref
        for ref in refs
        if ref.piece is not None and ref.digest is not None and ref.piece.hash() != ref.digest
    ]
    for ref in changed:
        ref.let_go()
    return bool(changed)
