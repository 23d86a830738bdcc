"""The rows of a unit: what its tensors are, as lines of JSON that show when they were changed."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from visualizer.errors import DamagedError
from visualizer.store.layout import Place, unit_name
from visualizer.store.pieces import hash_of
from visualizer.store.shards import Written

__all__ = [
    "Row",
    "UnitIndex",
    "as_read",
    "facts_of",
    "parse_index",
    "parse_sealed",
    "render_index",
    "seal",
]

SCHEMA = 1
"""The version of what is written. Another one is not read."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One value in a store: what it is, and the tree that it is read from.

    Attributes:
        kind: "local", "output", "input" or "attention"; "capture" is what a whole one has.
        value: The tree, as `values.encode` makes it.
        function: As in `Entry`, and so are variable, module_path, layer, call and step.
        shape: The value's shape; None for what is no single array.
        dtype: The type it had in the program.
        type_name: What it is, as "tuple".
        nbytes: Bytes of the arrays in it.
        facts: What else is known, as of an attention map its scale.
        placement: The device it was on, where it was not the CPU.
        samples: Which samples of a data set it is of.
        rank: Of which process.
        mesh: In which mesh of processes.
    """

    kind: str
    value: Any
    function: str | None = None
    variable: str | None = None
    module_path: str | None = None
    layer: int | None = None
    call: int = 0
    step: int | None = None
    shape: Sequence[int] | None = None
    dtype: str | None = None
    type_name: str | None = None
    nbytes: int | None = None
    facts: Mapping[str, Any] | None = None
    placement: str | None = None
    samples: Sequence[int] | None = None
    rank: int | None = None
    mesh: Any = None


_FIELDS = tuple(field.name for field in fields(Row))
_TYPES: dict[str, type] = {
    **dict.fromkeys(("kind", "function", "variable", "module_path"), str),
    **dict.fromkeys(("dtype", "type_name", "placement"), str),
    **dict.fromkeys(("layer", "call", "step", "nbytes", "rank"), int),
    **dict.fromkeys(("shape", "samples"), list),
    "facts": dict,
}


@dataclass(frozen=True, slots=True)
class UnitIndex:
    """What the index of a unit says.

    Attributes:
        unit: Its number.
        generation: Which writing of the store it belongs to.
        shard_bytes: Size of its shard; 0 where it has none.
        header_bytes: Size of the header of that.
        header_hash: The header's hash.
        rows: Its values.
    """

    unit: int
    generation: int
    shard_bytes: int
    header_bytes: int
    header_hash: str
    rows: tuple[Row, ...]


def facts_of(row: Row) -> dict[str, Any]:
    """Return what stands in the index of a row: its fields, without those that are None."""
    return {name: fact for name, fact in zip(_FIELDS, _read(row), strict=True) if fact is not None}


_read: Callable[[Row], tuple[Any, ...]] = operator.attrgetter(*_FIELDS)


def as_read(facts: Mapping[str, Any]) -> Row:
    """Return the row of facts that were written, as it is when it is read."""
    return _read_row(json.loads(_dump(facts)))


def render_index(place: Place, written: Written | None, rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the bytes of a unit's index.

    Args:
        place: The unit's.
        written: Its shard, if it has one.
        rows: The facts of its rows.
    """
    first = {
        "visualizer": SCHEMA,
        "unit": place.number,
        "generation": place.generation,
        "shard_bytes": 0 if written is None else written.nbytes,
        "header_bytes": 0 if written is None else written.header_bytes,
        "header_hash": "" if written is None else written.header_hash,
    }
    return seal([_dump(first), *map(_dump, rows)])


_dump = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def seal(lines: Sequence[str]) -> bytes:
    """Return lines with one behind them that has their number and their hash."""
    text = "".join(f"{line}\n" for line in lines).encode()
    return text + _seal_of(text)


def _seal_of(text: bytes) -> bytes:
    facts = {"lines": text.count(b"\n"), "xxh3_128": hash_of(text)}
    return f"{json.dumps(facts, separators=(',', ':'))}\n".encode()


def parse_sealed(text: bytes, name: str) -> list[Any]:
    """Return what sealed lines hold.

    Args:
        text: As `seal` returned it.
        name: What messages call the file.
    Raises:
        DamagedError: They are not as they were written.
    """
    end = text.rfind(b"\n", 0, len(text) - 1) + 1
    if text[end:] != _seal_of(text[:end]):
        raise DamagedError(f"{name} was changed or cut off after it was written")
    try:
        return [json.loads(line) for line in text[:end].splitlines()]
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name} has lines that are not JSON: {error}") from error


def parse_index(text: bytes, unit: int, file: Path | None = None) -> UnitIndex:
    """Return what the index of a unit says.

    Args:
        text: As `render_index` returned it.
        unit: Which one it should be of.
        file: Where it is, for messages.

    Raises:
        DamagedError: It was changed or cut off, or is another unit's.
    """
    name = f"the index of unit {unit_name(unit)}" if file is None else str(file)
    lines = parse_sealed(text, name)
    try:
        first, *rows = lines
        if first["visualizer"] != SCHEMA:
            raise DamagedError(
                f"{name} has version {first['visualizer']} of the format, and this is a "
                f"visualizer that reads version {SCHEMA}; install the one that it was written with"
            )
        if first["unit"] != unit:
            raise DamagedError(f"{name} is that of another unit, {unit_name(first['unit'])}")
        sizes = [_checked(first[name], int) for name in ("shard_bytes", "header_bytes")]
        if min(sizes) < 0:
            raise ValueError(f"{min(sizes)} is no size of a file")
        return UnitIndex(
            unit,
            _checked(first["generation"], int),
            sizes[0],
            sizes[1],
            _checked(first["header_hash"], str),
            tuple(_read_row(row) for row in rows),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{name} has lines that are no rows: {error}") from error


def _read_row(row: Mapping[str, Any]) -> Row:
    """Return a row; what a later version added is left out."""
    facts = {name: fact for name, fact in row.items() if name in _FIELDS}
    for name, kind in _TYPES.items():
        if name in facts:
            _checked(facts[name], kind)
    for size in facts.get("shape", ()):
        _checked(size, int)
    return Row(**{"value": None, **facts})


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__} that was written")
    return value
