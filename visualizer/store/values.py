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
import functools
import keyword
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from visualizer._block.entry import ModuleInputs
from visualizer._capture.snapshot import Reference
from visualizer._printable import printable
from visualizer.store.arrays import Fetch, describe_array, restore_array
from visualizer.store.pieces import Piece
from visualizer.store.tensors import describe_tensor, restore_tensor

__all__ = ["Fields", "Skipped", "decode", "encode", "short_repr"]

_DEEPEST = 100
_LARGE_BYTES = 2**16
_LONGEST_REPR = 200


class Fields(dict[Any, Any]):
    """What was a dataclass, or a dict of a class of its own, as a `ModelOutput`.

    Its items are attributes, too, and can be asked for by their place.

    Attributes:
        type_name: The class, as "module:qualname".
    """

    type_name: str = "builtins:dict"

    def __init__(self, type_name: str, items: Any) -> None:
        super().__init__(items)
        object.__setattr__(self, "type_name", type_name)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{self.type_name} had no attribute {name!r}") from None

    def __missing__(self, key: object) -> Any:
        if isinstance(key, int | slice):
            return tuple(self.values())[key]
        raise KeyError(key)

    def __repr__(self) -> str:
        return printable(f"<{self.type_name}: {super().__repr__()}>")


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """What stands in a store for an object that it can't hold.

    Attributes:
        type_name: The object's class, as "module:qualname".
        text: Its `repr`, cut off.
    """

    type_name: str
    text: str


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
            return self._same(self._nodes[id(value)])
        if depth > _DEEPEST:
            return _skipped(value, f"nested deeper than {_DEEPEST}")
        for recognises, make in _CONTAINERS:
            if recognises(value):
                node: dict[str, Any] = {}
                self._nodes[id(value)] = node
                self._met.append(value)
                node |= make(self, value, depth + 1) or _skipped(value)
                return node
        return _skipped(value.value if isinstance(value, Reference) else value)

    def _same(self, node: dict[str, Any]) -> dict[str, Any]:
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
        if type(value) is tuple or len(names) != len(value):
            return self.of_items("tuple", value, depth)
        return self.of_items("named", value, depth, type=_type_name(value), names=list(names))

    def of_dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        if type(value) is dict:
            return self.of_pairs("dict", value.items(), depth)
        if type(value) is collections.OrderedDict:
            return self.of_pairs("ordered", value.items(), depth)
        name = value.type_name if isinstance(value, Fields) else _type_name(value)
        return self.of_pairs("fields", value.items(), depth, type=name)

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

    def of_array(self, value: Any, depth: int) -> dict[str, Any] | None:
        if value.dtype == object:
            return self.of_items("objects", value.ravel(), depth, shape=list(value.shape))
        return describe_array(np.asarray(value), self._add)


def _match_args(value: Any) -> tuple[str, ...]:
    """Return the names of what torch returns, as of `torch.max(x, 0)`."""
    return getattr(type(value), "__match_args__", ())


def _is_json(value: Any) -> bool:
    kind = type(value)
    if kind is int:
        return bool(-(2**63) <= value < 2**63)
    return kind in (str, bool, type(None)) or (kind is float and math.isfinite(value))


_NUMBERS: dict[type, Callable[[Any], dict[str, Any]]] = {
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
        lambda value: isinstance(value, Tensor),
        lambda encoder, value, depth: describe_tensor(value, encoder._add),
    ),
    (lambda value: isinstance(value, np.ma.MaskedArray), _Encoder.of_masked),
    (lambda value: isinstance(value, np.ndarray), _Encoder.of_array),
    (
        lambda value: isinstance(value, np.generic),
        lambda encoder, value, depth: {
            "kind": "number",
            "array": describe_array(np.asarray(value), encoder._add),
        },
    ),
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
        lambda value: dataclasses.is_dataclass(value) and not isinstance(value, type | Reference),
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


def decode(tree: Any, fetch: Fetch) -> Any:
    """Return the value of a tree.

    Args:
        tree: As `encode` returned it, after it was JSON.
        fetch: Returns the bytes that a reference leads to.
    Raises:
        ValueError, TypeError, KeyError, RuntimeError, AttributeError: No tree of ours.
        DamagedError: Bytes are not what was written.
    """
    return _Decoder(fetch).decode(tree)


class _Decoder:
    """Decodes one value."""

    def __init__(self, fetch: Fetch) -> None:
        self.fetch = fetch
        self._shared: dict[int, Any] = {}

    def decode(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if node["kind"] == "same":
            return self._shared[node["as"]]
        return self._remember(node, _KINDS[node["kind"]](self, node))

    def _remember(self, node: Mapping[str, Any], made: Any) -> Any:
        if "id" in node:
            self._shared[node["id"]] = made
        return made

    def items(self, node: Mapping[str, Any]) -> Any:
        return map(self.decode, node["items"])

    def pairs(self, node: Mapping[str, Any]) -> Any:
        return ((self.decode(key), self.decode(item)) for key, item in node["items"])

    def to_list(self, node: Mapping[str, Any]) -> list[Any]:
        made: list[Any] = self._remember(node, [])  # it may be in itself
        made.extend(self.items(node))
        return made

    def to_dict(self, node: Mapping[str, Any]) -> dict[Any, Any]:
        kinds = {"dict": dict, "ordered": collections.OrderedDict}
        kind = kinds.get(node["kind"])
        made: dict[Any, Any] = self._remember(
            node, kind() if kind is not None else Fields(str(node["type"]), ())
        )
        made.update(self.pairs(node))
        return made

    def to_named(self, node: Mapping[str, Any]) -> tuple[Any, ...]:
        items = tuple(self.items(node))
        if node["type"] == _INPUTS:
            return ModuleInputs(*items)
        cls = _named_tuple(str(node["type"]), tuple(node["names"]))
        return items if cls is None else cls(*items)

    def to_bytes(self, node: Mapping[str, Any]) -> bytes | bytearray:
        cls = bytes if node["kind"] == "bytes" else bytearray
        if "hex" in node:
            return cls.fromhex(node["hex"])
        return cls(restore_array(node["array"], self.fetch).tobytes())

    def to_objects(self, node: Mapping[str, Any]) -> Any:
        if math.prod(node["shape"]) != len(node["items"]):
            raise ValueError(f"{len(node['items'])} objects for the shape {node['shape']}")
        made: Any = self._remember(node, np.empty(node["shape"], object))
        for place, item in zip(np.ndindex(*node["shape"]), self.items(node), strict=True):
            made[place] = item
        return made

    def to_masked(self, node: Mapping[str, Any]) -> Any:
        values, mask, fill = self.items(node)
        return np.ma.MaskedArray(values, mask, fill_value=fill)


_INPUTS = f"{ModuleInputs.__module__}:{ModuleInputs.__qualname__}"


def _whole(text: str) -> int:
    return int(text, 16)


_KINDS: dict[str, Callable[[_Decoder, Mapping[str, Any]], Any]] = {
    "int": lambda decoder, node: _whole(node["hex"]),
    "float": lambda decoder, node: float(node["text"]),
    "complex": lambda decoder, node: complex(node["text"]),
    "fraction": lambda decoder, node: fractions.Fraction(*map(_whole, node["hex"])),
    "decimal": lambda decoder, node: decimal.Decimal(node["text"]),
    "range": lambda decoder, node: range(*map(_whole, node["hex"])),
    "ellipsis": lambda decoder, node: ...,
    "number": lambda decoder, node: restore_array(node["array"], decoder.fetch)[()],
    "array": lambda decoder, node: restore_array(node, decoder.fetch),
    "tensor": lambda decoder, node: restore_tensor(node, decoder.fetch),
    "skipped": lambda decoder, node: Skipped(str(node["type"]), str(node["text"])),
    "list": _Decoder.to_list,
    "tuple": lambda decoder, node: tuple(decoder.items(node)),
    "named": _Decoder.to_named,
    "dict": _Decoder.to_dict,
    "ordered": _Decoder.to_dict,
    "fields": _Decoder.to_dict,
    "bytes": _Decoder.to_bytes,
    "bytearray": _Decoder.to_bytes,
    "objects": _Decoder.to_objects,
    "masked": _Decoder.to_masked,
}


@functools.lru_cache(maxsize=256)
def _named_tuple(type_name: str, names: tuple[str, ...]) -> Any:
    """Return a named tuple; None where the names are none that one can have."""
    name = type_name.rpartition(":")[2].rpartition(".")[2]
    try:
        if all(each.isidentifier() and not keyword.iskeyword(each) for each in (name, *names)):
            return collections.namedtuple(name, names)
    except (ValueError, AttributeError):  # twice the same, or with an underscore before it
        pass
    return None
