"""What a store is, from its index and the sizes of its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from visualizer._printable import counted
from visualizer.store.decoding import decode
from visualizer.store.index import Row
from visualizer.store.layout import unit_name
from visualizer.store.reader import Damage, Store

__all__ = ["Facts", "facts_of", "find_missing"]

_TOKENS = 6


@dataclass(frozen=True, slots=True)
class Facts:
    """What a store is.

    Attributes:
        path: Its folder.
        model: The model's class, as "module:qualname".
        libraries: Versions of what it was written with.
        units: How many units can be read.
        quarantined: How many were put aside.
        nbytes: Bytes of all its files.
        state: Whether it is whole, in words.
        annotations: What the capture was told, in short.
    """

    path: Path
    model: str | None
    libraries: Mapping[str, str]
    units: int
    quarantined: int
    nbytes: int
    state: str
    annotations: str


def facts_of(store: Store) -> Facts:
    """Return what a store is. No tensor is read."""
    layout = store.layout
    return Facts(
        layout.root,
        store.about.get("model"),
        store.about.get("libraries", {}),
        len(store.units),
        len({*layout.units_in(layout.quarantine)}),
        _bytes_beneath(layout.root),
        _state(store),
        _annotations(store),
    )


def find_missing(store: Store) -> list[Damage]:
    """Return the shards that are not there, or not with their size."""
    found = []
    for number, unit in store.units.items():
        file = store.layout.shard(number)
        try:
            size = file.stat().st_size if unit.shard_bytes else 0
        except OSError as error:
            found.append(Damage(number, f"{file} is missing: {error.strerror}"))
            continue
        if size != unit.shard_bytes:
            what = f"{file} has {size} bytes; {unit.shard_bytes} were written"
            found.append(Damage(number, what))
    return found


def _bytes_beneath(root: Path) -> int:
    return sum(
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(root)
        for name in names
    )


def _state(store: Store) -> str:
    units = [unit_name(each.unit) for each in store.damages if each.unit is not None]
    if units:
        more = f" and {len(units) - 3} more" if len(units) > 3 else ""
        return f"damaged: {', '.join(units[:3])}{more}; what is in the others can be read"
    if store.damages:
        return "damaged: store.json; the units can be read"
    if not store.is_whole:
        return "cut off while it was written, or still being written; this is what was committed"
    return "whole"


def _annotations(store: Store) -> str:
    row = next((row for row in store.rows if row.kind == "capture"), None)
    if row is None:
        return "lost, with the end of the store"
    try:
        return "; ".join(_describe(row)) or "none"
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError):
        return "can't be read"


def _describe(row: Row) -> list[str]:
    facts = row.facts or {}
    value = dict(row.value["items"])
    found = []
    if value["tokens"] is not None:
        found.append(_describe_tokens(value["tokens"]))
    if value["image"] is not None:
        found.append(_describe_picture(value["image"]))
    if facts["grid"] is not None:
        rows, columns = facts["grid"]
        found.append(f"a grid of {rows} × {columns} patches")
    if facts["prefix_tokens"]:
        found.append(f"{counted(facts['prefix_tokens'], 'token')} before the patches")
    return found


def _describe_tokens(tree: Any) -> str:
    items = tree["items"]
    some = [item for item in items[:_TOKENS] if isinstance(item, str)]
    more = " …" if len(some) < len(items) else ""
    return f"{counted(len(items), 'token')}: {' '.join(some)}{more}"


def _describe_picture(tree: Any) -> str:
    if tree["kind"] != "dict":
        return f"a picture of shape {tuple(tree['shape'])}"
    parts = dict(tree["items"])
    if "path" in parts:
        return f"the picture {os.path.basename(parts['path'])}"
    columns, rows = decode(parts["size"], _fetch_nothing)
    return f"a picture of {columns} × {rows} pixels"


def _fetch_nothing(ref: object) -> NoReturn:
    raise ValueError(f"{ref} is not in the index")
