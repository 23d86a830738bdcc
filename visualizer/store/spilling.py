"""A capture that goes to the disk while it runs, so that it need not fit into memory."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from visualizer._block.annotations import Annotations
from visualizer._block.budget import Budget
from visualizer._block.entry import Entry
from visualizer._block.views import CaptureRecord
from visualizer._capture.snapshot import snapshot
from visualizer.attention import AttentionMap
from visualizer.store.captures import row_of_capture, row_of_entry, size_of_map
from visualizer.store.index import Row
from visualizer.store.reader import Store
from visualizer.store.saved_maps import Recent, StoredMap, row_of_map
from visualizer.store.verify import refs_in
from visualizer.store.writer import StoreWriter

__all__ = ["Spill"]


class Spill:
    """Writes what a block takes, in the background: a `ValueSink`.

    Args:
        path: The store's folder.
        overwrite: Replace the store that is there.
        max_bytes: How many bytes may wait for the writer. None is 256 MiB.

    Attributes:
        nbytes: Bytes that it has taken.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, overwrite: bool, max_bytes: int | None
    ) -> None:
        self._path, self._overwrite = path, overwrite
        self._max_bytes = Budget(max_bytes).max_bytes or _MOST_WAITING
        self._recent = Recent()
        self._opened: StoreWriter | None = None
        self.nbytes = 0

    def open(self, record: CaptureRecord) -> None:
        """Make the store.

        Args:
            record: The capture that is going to be written.
        Raises:
            StoreExistsError, StoreWriteError: As for `StoreWriter`.
        """
        self._opened = StoreWriter(
            self._path,
            model=record.model_name,
            spec=record.spec,
            overwrite=self._overwrite,
            is_in_background=True,
            memory="ours",
            max_bytes=self._max_bytes,
        )
        self._store = _Growing(self._opened)

    @property
    def _writer(self) -> StoreWriter:
        assert self._opened is not None, "values come while the block is open"
        return self._opened

    def put(self, entry: Entry) -> Entry:
        """Have a value written, and return an entry that reads it.

        Raises:
            StoreWriteError: Writing failed, now or before.
        """
        spilled = _Spilled(self._store, entry)
        self._writer.add_later(entry.nbytes, partial(row_of_entry, entry), spilled.on_written)
        self.nbytes += entry.nbytes
        return replace(entry, read=spilled.read)

    def put_map(self, made: AttentionMap, site: int) -> None:
        """Have what a map is computed from written, and let the map read it from there.

        Raises:
            StoreWriteError: Writing failed, now or before.
        """
        size = size_of_map(made)

        def on_written(row: Row) -> None:
            made.record = StoredMap(self._store, row, self._recent)

        self._writer.add_later(size, partial(row_of_map, made, site), on_written)
        self.nbytes += size

    def abandon(self) -> None:
        """Write nothing more."""
        self._writer.abandon()

    def close(self, record: CaptureRecord, annotations: Annotations) -> None:
        """Write what a capture has beside its values, and wait until all is on the disk.

        Raises:
            StoreWriteError: Writing failed; what was committed stays.
        """
        attention = record.attention
        paths = [] if attention is None else [site.module_path for site in attention.sites]
        try:
            self._writer.add(row_of_capture(record, annotations, paths))
        finally:
            self._writer.close()


_MOST_WAITING = 256 * 2**20


class _Growing:
    """A store that is still being written: its index is read again when it is too old."""

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self._store: Store | None = None

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._writer.path

    def decode(self, tree: Any) -> Any:
        """Return the value of a tree."""
        units = {ref["unit"] for ref in refs_in(tree)}
        if self._store is None or not units <= self._store.units.keys():
            self._store = Store(self._writer.path, generation=self._writer.generation)
        return self._store.decode(tree)


class _Spilled:
    """A value: in memory until it is on the disk."""

    __slots__ = ("_entry", "_row", "_store")

    def __init__(self, store: _Growing, entry: Entry) -> None:
        self._store = store
        self._entry: Entry | None = entry
        self._row: Row | None = None

    def on_written(self, row: Row) -> None:
        """Let go of the memory."""
        self._row = row
        self._entry = None

    def read(self) -> Any:
        """Return the value."""
        entry, row = self._entry, self._row
        if entry is not None:
            return snapshot(entry.read())  # nobody else is to change what will be written
        assert row is not None
        return self._store.decode(row.value)
