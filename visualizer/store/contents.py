"""What a capture holds, value by value, for what writes it in another format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from visualizer._block.entry import Entry
from visualizer._block.views import CaptureRecord
from visualizer.attention import AttentionMap
from visualizer.errors import VisualizerError
from visualizer.store.plain import OMITTED, LeaveOut, make_plain

__all__ = ["Item", "items_of", "read_plain"]


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A value of a capture.

    Attributes:
        kind: "local", "output", "input" or "attention".
        key: Where it is read: "modules.blocks.3.mlp", "locals.Attention.forward.attn".
        number: Its place among those of that key.
        is_alone: Whether it is the only one.
        source: The value.
    """

    kind: str
    key: str
    number: int
    is_alone: bool
    source: Entry | AttentionMap

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.key if self.is_alone else f"{self.key}[{self.number}]"

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of it, as JSON can hold it."""
        names = ("function", "variable", "module_path", "layer", "call", "step", "dtype")
        dtype = "float32" if isinstance(self.source, AttentionMap) else self.source.dtype
        found = {name: getattr(self.source, name, None) for name in names} | {"dtype": dtype}
        return {"kind": self.kind} | {k: fact for k, fact in found.items() if fact is not None}


def items_of(record: CaptureRecord, *, attention: bool) -> list[Item]:
    """Return everything that a capture holds.

    Args:
        record: The capture.
        attention: Whether attention maps are wanted.
    """
    found: list[Item] = []
    for kind, key, sources in _groups(record, attention):
        is_alone = len(sources) == 1
        found += [Item(kind, key, n, is_alone, source) for n, source in enumerate(sources)]
    return found


def _groups(record: CaptureRecord, attention: bool) -> Iterator[tuple[str, str, Any]]:
    names = [function.qualname for function in record.functions]
    for function in record.functions:
        shown = function.qualname if names.count(function.qualname) == 1 else function.key
        for variable, site in function.sites.items():
            yield "local", f"locals.{shown}.{variable}", site.entries
    for path, entries in record.outputs().items():
        yield "output", _key("modules", path), entries
    for path, entries in record.inputs().items():
        yield "input", _key("inputs", path), entries
    maps: dict[str | None, list[AttentionMap]] = {}
    for made in record.attention.maps if attention and record.attention is not None else ():
        maps.setdefault(made.module_path, []).append(made)
    for where, group in maps.items():
        yield (
            "attention",
            _key("attention", "outside_of_modules" if where is None else where),
            group,
        )


def _key(kind: str, path: str) -> str:
    return f"{kind}.{path}" if path else kind  # "" is the model itself


def read_plain(item: Item, leave_out: LeaveOut, *, max_bytes: int) -> Any:
    """Return a value without anything of a class of its own; `OMITTED` where it can't be had.

    Args:
        item: Which; of an attention map it is the weights.
        leave_out: Is told what is left out.
        max_bytes: How large an attention map may be.
    """
    source = item.source
    try:
        if isinstance(source, AttentionMap):
            return source.weights(max_bytes=max_bytes)
        return make_plain(source.value, item.name, leave_out)
    except VisualizerError as error:
        leave_out(item.name, str(error))
        return OMITTED
