"""Trees of JSON as the values that they stand for; see `encoding`. Nothing is imported by name."""

from __future__ import annotations

import collections
import decimal
import fractions
import functools
import keyword
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from visualizer._block.entry import ModuleInputs
from visualizer.store.arrays import Fetch, restore_array
from visualizer.store.tensors import restore_tensor
from visualizer.store.values import Fields, Skipped

__all__ = ["decode"]


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
        made: dict[Any, Any] = kind() if kind is not None else _no_fields(node)
        self._remember(node, made).update(self.pairs(node))
        return made

    def to_named(self, node: Mapping[str, Any]) -> tuple[Any, ...]:
        items = tuple(self.items(node))
        if node["type"] == _INPUTS:
            return ModuleInputs(*items)
        names = tuple(node["names"])
        cls = _named_tuple(str(node["type"]), names) if len(names) == len(items) else None
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

    def to_strings(self, node: Mapping[str, Any]) -> Any:
        missing = self.decode(node["missing"])
        options = {} if missing is ... else {"na_object": missing}
        dtype: Any = np.dtypes.StringDType(**options)
        return np.array(list(self.items(node)), dtype).reshape(node["shape"])

    def to_numpy(self, node: Mapping[str, Any]) -> Any:
        value = self.decode(node["as"])
        return np.str_(value) if isinstance(value, str) else np.bytes_(value)

    def to_masked(self, node: Mapping[str, Any]) -> Any:
        values, mask, fill = self.items(node)
        return np.ma.MaskedArray(values, mask, fill_value=fill)


_INPUTS = f"{ModuleInputs.__module__}:{ModuleInputs.__qualname__}"


def _no_fields(node: Mapping[str, Any]) -> Fields:
    return Fields(str(node["type"]), (), tuple(map(str, node.get("absent", ()))))


def _whole(text: str) -> int:
    return int(text, 16)


_KINDS: dict[str, Callable[[_Decoder, Mapping[str, Any]], Any]] = {
    "int": lambda decoder, node: _whole(node["hex"]),
    "float": lambda decoder, node: float(node["text"]),
    "str": lambda decoder, node: bytes.fromhex(node["hex"]).decode("utf-8", "surrogatepass"),
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
    "strings": _Decoder.to_strings,
    "numpy": _Decoder.to_numpy,
    "masked": _Decoder.to_masked,
}


@functools.lru_cache(maxsize=256)
def _named_tuple(type_name: str, names: tuple[str, ...]) -> Any:
    """Return a named tuple; None where the names are none that one can have."""
    module, _, qualname = type_name.rpartition(":")
    name = qualname.rpartition(".")[2]
    try:
        if all(each.isidentifier() and not keyword.iskeyword(each) for each in (name, *names)):
            made: Any = collections.namedtuple(name, names, module=module)  # type: ignore[misc]
            made.__qualname__ = qualname  # so that it is the same when it is stored again
            return made
    except (ValueError, AttributeError):  # twice the same, or with an underscore before it
        pass
    return None
