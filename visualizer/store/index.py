"""The rows of a unit: what its tensors are, as lines of JSON that show when they were changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from visualizer.errors import DamagedError
from visualizer.store.layout import unit_name
from visualizer.store.pieces import Ref, hash_of
from visualizer.store.shards import Written

__all__ = [
    "Row",
    "UnitIndex",
    "parse_about",
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


_FIELDS = frozenset(field.name for field in fields(Row))


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


def render_index(unit: int, generation: int, written: Written | None, rows: Sequence[Row]) -> bytes:
    """Return the bytes of a unit's index."""
    first = {
        "visualizer": SCHEMA,
        "unit": unit,
        "generation": generation,
        "shard_bytes": 0 if written is None else written.nbytes,
        "header_bytes": 0 if written is None else written.header_bytes,
        "header_hash": "" if written is None else written.header_hash,
    }
    lines = [_dump(first)]
    for row in rows:
        facts = ((field, getattr(row, field)) for field in Row.__dataclass_fields__)
        lines.append(_dump({name: fact for name, fact in facts if fact is not None}))
    return seal(lines)


def _dump(value: Any) -> str:
    return json.dumps(value, default=_facts_of, allow_nan=False, separators=(",", ":"))


def _facts_of(value: Any) -> Any:
    if isinstance(value, Ref):
        return value.facts
    raise TypeError(f"{type(value).__name__} does not belong into an index")


def seal(lines: Sequence[str]) -> bytes:
    """Return lines with one behind them that has their number and their hash."""
    text = "".join(f"{line}\n" for line in lines).encode()
    last = json.dumps({"lines": len(lines), "xxh3_128": hash_of(text)}, separators=(",", ":"))
    return text + f"{last}\n".encode()


def parse_sealed(text: bytes, name: str) -> list[Any]:
    """Return what sealed lines hold.

    Args:
        text: As `seal` returned it.
        name: What messages call the file.
    Raises:
        DamagedError: They are not as they were written.
    """
    end = text.rfind(b"\n", 0, len(text) - 1) + 1
    try:
        last = json.loads(text[end:])
        whole = text.endswith(b"\n") and last["xxh3_128"] == hash_of(text[:end])
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise DamagedError(f"{name} was changed or cut off after it was written")
    try:
        return [json.loads(line) for line in text[:end].splitlines()]
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name} has lines that are no JSON: {error}") from error


def parse_about(text: bytes) -> dict[str, Any]:
    """Return what store.json says.

    Raises:
        DamagedError: It was changed or cut off, or says nothing of the kind.
    """
    found = parse_sealed(text, "store.json")
    about = found[0] if len(found) == 1 else None
    units = about.get("units") if isinstance(about, dict) else ...
    if not isinstance(about, dict) or not (units is None or _are(units, int)):
        raise DamagedError("store.json has lines that say nothing of a store")
    return about


def parse_index(text: bytes, unit: int) -> UnitIndex:
    """Return what the index of a unit says.

    Raises:
        DamagedError: It was changed or cut off, or is another unit's.
    """
    name = f"the index of unit {unit_name(unit)}"
    try:
        first, *rows = parse_sealed(text, name)
        if first["visualizer"] != SCHEMA:
            raise DamagedError(
                f"{name} has version {first['visualizer']} of the format, and this is a "
                f"visualizer that reads version {SCHEMA}; install the one that it was written with"
            )
        if first["unit"] != unit:
            raise DamagedError(f"{name} is that of another unit, {unit_name(first['unit'])}")
        generation, *sizes = (first[name] for name in ("generation", "shard_bytes", "header_bytes"))
        if not _are([generation, *sizes], int) or min(sizes) < 0:
            raise TypeError(f"its sizes are {sizes}")
        header, made = str(first["header_hash"]), tuple(map(_read_row, rows))
        return UnitIndex(unit, generation, sizes[0], sizes[1], header, made)
    except DamagedError:
        raise
    except Exception as error:
        raise DamagedError(f"{name} has lines that are no rows: {error}") from error


def _read_row(row: Mapping[str, Any]) -> Row:
    """Return a row; what a later version added is left out."""
    for name, kind in _TYPES.items():
        if type(row.get(name)) not in (kind, type(None)):
            raise TypeError(f"{name} is {row[name]!r}")
    if not _are(row.get("shape") or [], int):
        raise TypeError(f"shape is {row['shape']!r}")
    return Row(**{name: fact for name, fact in row.items() if name in _FIELDS}, **_no_value(row))


_TEXTS = ("kind", "function", "variable", "module_path", "dtype", "type_name", "placement")
_TYPES: dict[str, type] = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(("layer", "call", "step", "nbytes", "rank"), int),
    "shape": list,
    "facts": dict,
}


def _are(values: Any, kind: type) -> bool:
    """Tell whether something is a list of values of a type."""
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _no_value(row: Mapping[str, Any]) -> dict[str, Any]:
    return {} if "value" in row else {"value": None}
