"""A capture in a store: what is written of it, and how it is read again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from visualizer._block.annotations import Annotations
from visualizer._block.entry import Entry
from visualizer._block.kept import Kept
from visualizer._block.views import CaptureRecord
from visualizer._printable import printable
from visualizer.attention import AttentionMap
from visualizer.errors import DamagedError
from visualizer.store.index import Row
from visualizer.store.pictures import pack_picture, unpack_picture
from visualizer.store.reader import Store
from visualizer.store.saved_maps import Recent, StoredMap, row_of_map
from visualizer.store.writer import StoreWriter

__all__ = ["StoredCapture", "row_of_capture", "row_of_entry", "size_of_map", "write_capture"]


def write_capture(writer: StoreWriter, record: CaptureRecord, annotations: Annotations) -> None:
    """Hand everything that a capture holds to a writer.

    Args:
        writer: Of a new store.
        record: The capture.
        annotations: What it was told.
    Raises:
        StoreWriteError: It can't be written.
    """
    for entry in _entries(record):
        kept = entry.read
        if isinstance(kept, Kept):
            make = partial(row_of_entry, entry)
            make_now = writer.add_later(size_of_entry(entry), make, is_shared=False)
            if not kept.before_read(make_now):  # somebody has it, and may change it any time
                make_now()
        else:
            writer.add(row_of_entry(entry))
    attention = record.attention
    paths: list[str | None] = []
    if attention is not None:
        sites = attention.sites
        paths = [site.module_path for site in sites]
        place = {id(made): number for number, site in enumerate(sites) for made in site.maps}
        for made in attention.maps:
            site = place.get(id(made), -1)
            writer.add_later(size_of_map(made), partial(row_of_map, made, site))
    make_now = writer.add_later(0, partial(row_of_capture, record, annotations, paths))
    if record.state == "open" or annotations.image is not None:
        make_now()


def _entries(record: CaptureRecord) -> list[Entry]:
    found = [
        entry
        for function in record.functions
        for site in function.sites.values()
        for entry in site.entries
    ]
    for entries in (*record.outputs().values(), *record.inputs().values()):
        found += entries
    return found


def size_of_map(made: AttentionMap) -> int:
    """Return the bytes of what a captured map is computed from."""
    record: Any = made.record  # that of a capture
    return sum(record.held().values())


def size_of_entry(entry: Entry) -> int:
    """Return about how many bytes a captured value takes in a store."""
    if entry.shape is not None and (entry.dtype or "").startswith(("bfloat16", "float8")):
        return min(entry.nbytes, 2 * math.prod(entry.shape))  # it may have been widened
    return entry.nbytes


def row_of_entry(entry: Entry) -> Row:
    """Return what is stored of a value."""
    kept = entry.read
    return Row(
        kind=entry.kind,
        value=kept.peek() if isinstance(kept, Kept) else kept(),
        function=entry.function,
        variable=entry.variable,
        module_path=entry.module_path,
        layer=entry.layer,
        call=entry.call,
        step=entry.step,
        shape=entry.shape,
        dtype=entry.dtype,
        type_name=entry.type_name,
        nbytes=entry.nbytes,
    )


def _explained(record: CaptureRecord) -> list[str]:
    """Return what `explain` says; the model may be changed while it is looked through."""
    try:
        return record.explain()
    except RuntimeError as error:
        return [f"what is missing could not be told: {error}"]


def row_of_capture(
    record: CaptureRecord,
    annotations: Annotations,
    paths: Sequence[str | None],
) -> Row:
    """Return what a capture has beside its values.

    Args:
        record: The capture.
        annotations: What it was told.
        paths: The modules that attended.
    """
    facts = {
        "functions": [
            [function.key, function.qualname, list(function.sites)] for function in record.functions
        ],
        "outputs": list(record.outputs()),
        "inputs": list(record.inputs()),
        "attention": record.attention is not None,
        "paths": list(paths),
        "explained": _explained(record),
        "why_no_attention": "" if paths else record.why_no_attention(),
        "spec": record.spec,
        "prefix_tokens": int(annotations.prefix_tokens),
        "grid": None if annotations.grid is None else [int(size) for size in annotations.grid],
    }
    tokens = annotations.tokens
    value = {
        "tokens": None if tokens is None else list(tokens),
        "image": pack_picture(annotations.image),
    }
    return Row(kind="capture", value=value, facts=facts)


@dataclass(slots=True, eq=False)
class _Site:
    """A variable, or a module's outputs or inputs."""

    entries: list[Entry] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Function:
    """A function of which locals were taken."""

    key: str
    qualname: str
    sites: dict[str, _Site] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _AttentionSite:
    """A module that attended."""

    module_path: str | None
    maps: list[AttentionMap] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Attention:
    """The attention maps."""

    maps: list[AttentionMap]
    sites: list[_AttentionSite]


class StoredCapture:
    """A capture in a store: a `CaptureRecord`. Of values only the index is read.

    Args:
        store: The store.

    Attributes:
        functions: Of which locals were taken.
        attention: The attention maps; None if they were not asked for.
        nbytes: Bytes of the tensors in the store.
        state: "loaded".
        model_name: The model's class.
        spec: What was asked for.
    """

    state = "loaded"

    def __init__(self, store: Store) -> None:
        self._store = store
        rows = store.rows
        ours = next((row for row in rows if row.kind == "capture"), None)
        self._row = ours
        self._unread: list[str] = []
        self._facts = self._read_facts({} if ours is None else ours.facts or {})
        self.model_name = store.about.get("model")
        self.spec = self._facts.get("spec", {})
        self.nbytes = sum(unit.shard_bytes - unit.header_bytes for unit in store.units.values())
        self._functions = {
            key: _Function(key, qualname, {name: _Site() for name in names})
            for key, qualname, names in self._facts.get("functions", [])
        }
        self._outputs = {path: _Site() for path in self._facts.get("outputs", [])}
        self._inputs = {path: _Site() for path in self._facts.get("inputs", [])}
        for row in rows:
            if row.kind in ("local", "output", "input"):
                self._site_of(row).entries.append(_entry(store, row))
        for sites in (self._outputs, self._inputs, *(f.sites for f in self._functions.values())):
            for site in sites.values():
                site.entries.sort(key=lambda entry: entry.call)
        self.attention = self._read_maps(rows)

    @property
    def functions(self) -> list[_Function]:
        return list(self._functions.values())

    def outputs(self) -> dict[str, list[Entry]]:
        """Return the outputs of modules, by path."""
        return {path: site.entries for path, site in self._outputs.items()}

    def inputs(self) -> dict[str, list[Entry]]:
        """Return what modules were called with, by path."""
        return {path: site.entries for path, site in self._inputs.items()}

    def annotations(self) -> Annotations:
        """Return what the capture was told.

        Raises:
            DamagedError: That is not what was written.
        """
        if self._row is None:
            return Annotations()
        value = self._store.read(self._row)
        grid = self._facts.get("grid")
        try:
            return Annotations(
                value["tokens"],
                unpack_picture(value["image"]),
                None if grid is None else tuple(grid),
                self._facts.get("prefix_tokens", 0),
            )
        except Exception as error:  # of Pillow's
            raise DamagedError(
                f"what the capture was told can't be read: {type(error).__name__}: {error}"
            ) from error

    def explain(self) -> list[str]:
        """Say what was not captured, and what of it can't be read any more."""
        return [*map(printable, self._facts.get("explained", [])), *self.troubles()]

    def troubles(self) -> list[str]:
        """Say what can't be read, or was never written."""
        found = [*(str(damage) for damage in self._store.damages), *self._unread]
        if not self._store.is_whole and not found:
            found.append(
                f"{self._store.layout.root} was not written to its end: the process was killed, or "
                f"is still writing. What was committed until then is here"
            )
        return found

    def why_no_attention(self) -> str:
        """Say why there are no attention maps."""
        return printable(self._facts.get("why_no_attention", "") or "; ".join(self.troubles()))

    def _read_facts(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            _check(facts)
        except (TypeError, ValueError) as error:
            self._unread.append(f"what the capture is can't be read: {error}")
            return {}
        return facts

    def _site_of(self, row: Row) -> _Site:
        if row.kind == "local":
            key = row.function or "?"
            function = self._functions.setdefault(key, _Function(key, key.rpartition(":")[2]))
            return function.sites.setdefault(row.variable or "?", _Site())
        sites = self._outputs if row.kind == "output" else self._inputs
        return sites.setdefault(row.module_path or "", _Site())

    def _read_maps(self, rows: Sequence[Row]) -> _Attention | None:
        recent = Recent()
        sites = {
            number: _AttentionSite(path) for number, path in enumerate(self._facts.get("paths", []))
        }
        maps = []
        for row in rows:
            if row.kind == "attention":
                try:
                    record = StoredMap(self._store, row, recent)
                except DamagedError as error:
                    self._unread.append(str(error))
                    continue
                made = AttentionMap(record)
                maps.append(made)
                sites.setdefault(record.site, _AttentionSite(row.module_path)).maps.append(made)
        if not maps and not self._facts.get("attention", False):
            return None
        return _Attention(maps, [site for _, site in sorted(sites.items())])


def _check(facts: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError where facts are none of a capture."""
    for key, qualname, names in facts.get("functions", []):
        _check_texts([key, qualname, *names])
    for name in ("outputs", "inputs", "explained"):
        _check_texts(facts.get(name, []))
    _check_texts(path for path in facts.get("paths", []) if path is not None)
    _check_texts([facts.get("why_no_attention", "")])
    if any(type(size) is not int for size in facts.get("grid") or ()):
        raise TypeError(f"the grid is {facts['grid']}")


def _check_texts(values: Iterable[Any]) -> None:
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no text")


def _entry(store: Store, row: Row) -> Entry:
    return Entry(
        kind=row.kind,
        function=row.function,
        variable=row.variable,
        module_path=row.module_path,
        layer=row.layer,
        call=row.call,
        step=row.step,
        shape=None if row.shape is None else tuple(row.shape),
        dtype=row.dtype,
        type_name=row.type_name or "?",
        nbytes=row.nbytes or 0,
        read=partial(store.read, row),
    )
