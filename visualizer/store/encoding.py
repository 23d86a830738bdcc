"""Values as trees that JSON can hold, with references to the tensors in them. No pickle.

Numbers, strings, lists, tuples, dicts, arrays and tensors come back as they were. What was of a
class of its own comes back as what it can be read as: a named tuple as one of the same name, a
dataclass or a special dict as `Fields`. Anything else leaves its type and its `repr`: `Skipped`.
No name in a store is ever imported.
"""

from __future__ import annotations

import collections
import dataclasses
import decimal
import fractions
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from visualizer._capture.snapshot import Narrow, Reference
from visualizer.store.arrays import describe_array, describe_narrow
from visualizer.store.pieces import Piece
from visualizer.store.tensors import describe_tensor
from visualizer.store.values import Fields, Skipped

__all__ = ["encode", "short_repr"]

_DEEPEST = 100
_LARGE_BYTES = 2**16
_LONGEST_REPR = 200


def encode(value: Any, add: Callable[[Piece], Any]) -> Any:
    """Return a value as a tree that JSON can hold, but for the references that `add` returns.

    Args:
        value: Any value.
        add: Has a piece of memory written, and returns a reference to it.
    """
    return _Encoder(add).encode(value, 0)


class _Encoder:
    """Encodes one value. Remembers what it has met, for shared and circular parts."""

    def __init__(self, add: Callable[[Piece], Any]) -> None:
        self._add = add
        self._nodes: dict[int, dict[str, Any]] = {}
        self._met: list[Any] = []  # keeps the ids above from being used again
        self._shared = 0

    def encode(self, value: Any, depth: int) -> Any:
        if _is_json(value):
            return value
        make_number = _NUMBERS.get(type(value))
        if make_number is not None:
            return make_number(value)
        if id(value) in self._nodes:
            return self._same(value, self._nodes[id(value)])
        if depth > _DEEPEST:
            return _skipped(value, f"nested deeper than {_DEEPEST}")
        for recognises, make in _CONTAINERS:
            if recognises(value):
                node: dict[str, Any] = {}
                self._nodes[id(value)] = node
                self._met.append(value)
                try:
                    made = make(self, value, depth + 1)
                except Exception as error:  # of somebody's class: its items, its fields
                    made = _skipped(value, f"it raised {type(error).__name__}: {error}")
                node |= made or _skipped(value)
                return node
        return _skipped(value.value if isinstance(value, Reference) else value)

    def _same(self, value: Any, node: dict[str, Any]) -> dict[str, Any]:
        if "kind" not in node and isinstance(value, tuple | np.ma.MaskedArray):
            return _skipped(value, "it is in itself, and can't be made before its parts")
        if "id" not in node:
            node["id"] = self._shared
            self._shared += 1
        return {"kind": "same", "as": node["id"]}

    def of_items(self, kind: str, items: Any, depth: int, **more: Any) -> dict[str, Any]:
        return {"kind": kind, **more, "items": [self.encode(item, depth) for item in items]}

    def of_pairs(self, kind: str, pairs: Any, depth: int, **more: Any) -> dict[str, Any]:
        both = [[self.encode(key, depth), self.encode(item, depth)] for key, item in pairs]
        return {"kind": kind, **more, "items": both}

    def of_tuple(self, value: tuple[Any, ...], depth: int) -> dict[str, Any]:
        names: tuple[str, ...] = getattr(value, "_fields", None) or _match_args(value)
        if type(value) is tuple or len(names) != len(value) or not all(map(_is_text, names)):
            return self.of_items("tuple", value, depth)
        return self.of_items("named", value, depth, type=_type_name(value), names=list(names))

    def of_dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        if type(value) is dict:
            return self.of_pairs("dict", value.items(), depth)
        if type(value) is collections.OrderedDict:
            return self.of_pairs("ordered", value.items(), depth)
        if isinstance(value, Fields):
            name, absent = value.type_name, list(value.absent)
        else:
            name, absent = _type_name(value), _absent(value)
        return self.of_pairs("fields", value.items(), depth, type=name, absent=absent)

    def of_dataclass(self, value: Any, depth: int) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(value)]
        pairs = [(name, getattr(value, name)) for name in names if hasattr(value, name)]
        return self.of_pairs("fields", pairs, depth, type=_type_name(value))

    def of_bytes(self, value: bytes | bytearray, depth: int) -> dict[str, Any]:
        kind = type(value).__name__
        if len(value) < _LARGE_BYTES:
            return {"kind": kind, "hex": value.hex()}
        array = np.frombuffer(bytes(value), np.uint8)
        return {"kind": kind, "array": describe_array(array, self._add)}

    def of_masked(self, value: Any, depth: int) -> dict[str, Any]:
        parts = value.data, np.ma.getmaskarray(value), np.asarray(value.fill_value)
        return self.of_items("masked", map(np.asarray, parts), depth)

    def of_number(self, value: Any, depth: int) -> dict[str, Any] | None:
        if isinstance(value, str | bytes):  # an array would drop NULs at its end
            plain = "".join(value) if isinstance(value, str) else bytes(value)
            return {"kind": "numpy", "as": self.encode(plain, depth)}
        array = describe_array(np.asarray(value), self._add)
        return None if array is None else {"kind": "number", "array": array}

    def of_array(self, value: Any, depth: int) -> dict[str, Any] | None:
        shape = list(value.shape)
        if value.dtype.kind == "T":
            missing = self.encode(getattr(value.dtype, "na_object", ...), depth)
            return self.of_items("strings", value.ravel(), depth, shape=shape, missing=missing)
        if value.dtype == object:
            return self.of_items("objects", value.ravel(), depth, shape=shape)
        return describe_array(np.asarray(value), self._add)


def _match_args(value: Any) -> tuple[str, ...]:
    """Return the names of what torch returns, as of `torch.max(x, 0)`."""
    return getattr(type(value), "__match_args__", ())


def _absent(value: dict[Any, Any]) -> list[str]:
    """Return the attributes of a dict with fields, as a `ModelOutput`, that are no items of it."""
    described: Any = value
    names = [field.name for field in dataclasses.fields(described)] if _has_fields(value) else []
    return [name for name in names if name not in value and getattr(value, name, ...) is None]


def _has_fields(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_json(value: Any) -> bool:
    kind = type(value)
    if kind is int:
        return bool(-(2**63) <= value < 2**63)
    if kind is str:
        return value.isascii() or not _SURROGATE.search(value)
    return kind in (bool, type(None)) or (kind is float and math.isfinite(value))


_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON would read two halves of a character as that character."""


_NUMBERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    str: lambda value: {"kind": "str", "hex": value.encode("utf-8", "surrogatepass").hex()},
    int: lambda value: {"kind": "int", "hex": hex(value)},
    float: lambda value: {"kind": "float", "text": repr(value)},
    complex: lambda value: {"kind": "complex", "text": repr(value)},
    fractions.Fraction: lambda value: {
        "kind": "fraction",
        "hex": [hex(value.numerator), hex(value.denominator)],
    },
    decimal.Decimal: lambda value: {"kind": "decimal", "text": str(value)},
    range: lambda value: {
        "kind": "range",
        "hex": [hex(value.start), hex(value.stop), hex(value.step)],
    },
    type(...): lambda value: {"kind": "ellipsis"},
}

_CONTAINERS: tuple[tuple[Callable[[Any], bool], Any], ...] = (
    (
        lambda value: issubclass(type(value), Tensor),  # a mock says that it is an instance
        lambda encoder, value, depth: describe_tensor(value, encoder._add),
    ),
    (lambda value: isinstance(value, np.ma.MaskedArray), _Encoder.of_masked),
    (lambda value: isinstance(value, np.ndarray), _Encoder.of_array),
    (
        lambda value: isinstance(value, Narrow),
        lambda encoder, value, depth: describe_narrow(value, encoder._add),
    ),
    (lambda value: isinstance(value, np.generic), _Encoder.of_number),
    (
        lambda value: type(value) is list,
        lambda encoder, value, depth: encoder.of_items("list", value, depth),
    ),
    (lambda value: isinstance(value, tuple), _Encoder.of_tuple),
    (lambda value: isinstance(value, dict), _Encoder.of_dict),
    (lambda value: type(value) in (bytes, bytearray), _Encoder.of_bytes),
    (
        lambda value: isinstance(value, Skipped),
        lambda encoder, value, depth: {
            "kind": "skipped",
            "type": value.type_name,
            "text": value.text,
        },
    ),
    (
        lambda value: _has_fields(value) and not isinstance(value, Reference),
        _Encoder.of_dataclass,
    ),
    (
        lambda value: isinstance(value, list),
        lambda encoder, value, depth: encoder.of_items("list", value, depth),
    ),
)


def _skipped(value: Any, why: str = "") -> dict[str, Any]:
    return {"kind": "skipped", "type": _type_name(value), "text": why or short_repr(value)}


def _type_name(value: Any) -> str:
    cls = type(value)
    return f"{cls.__module__}:{cls.__qualname__}"


def short_repr(value: Any) -> str:
    """Return a value's `repr`, cut off; it may be somebody's own, and raise."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<its repr raised {type(error).__name__}>"
    return text if len(text) <= _LONGEST_REPR else f"{text[:_LONGEST_REPR]}…"
