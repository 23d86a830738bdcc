"""What goes into a store and comes out of it again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from visualizer.store import Row, Store, StoreWriter

__all__ = ["bytes_of", "put", "through"]


def put(path: Path, *values: Any, **options: Any) -> Store:
    """Write values into a new store, and open it."""
    with StoreWriter(path, **options) as writer:
        for value in values:
            writer.add(Row(kind="output", value=value))
    return Store(path)


def through(value: Any) -> Any:
    """Return a value as it comes out of a store."""
    with tempfile.TemporaryDirectory() as folder:
        store = put(Path(folder) / "run", value)
        (row,) = store.rows
        return store.read(row)


def bytes_of(store: Store) -> int:
    """Return the bytes of tensors in a store, without the headers of their files."""
    return sum(unit.shard_bytes - unit.header_bytes for unit in store.units.values())
