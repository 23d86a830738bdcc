"""Which attention map belongs to which call of which module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visualizer._block.entry import Entry
from visualizer._block.views import CaptureRecord
from visualizer.attention import AttentionMap
from visualizer.errors import VisualizerError
from visualizer.store.module_names import category_of
from visualizer.store.plain import OMITTED, LeaveOut

__all__ = ["Attending", "ModuleCall", "with_weights"]

_OUTSIDE = "(outside of modules)"


@dataclass(frozen=True, slots=True, eq=False)
class ModuleCall:
    """A call of a module.

    Attributes:
        number: Which, of this module.
        step: Which forward of the root model it was.
        output: What it returned; None where that was not taken.
        input: What it was called with; None where that was not taken.
        maps: How it attended.
    """

    number: int
    step: int | None
    output: Entry | None = None
    input: Entry | None = None
    maps: tuple[AttentionMap, ...] = ()


class Attending:
    """The attention maps of a capture, by the modules that they are shown with.

    A module that attends has its own. One that is called attention, and in which exactly one
    module attends, as `attention` around `attention.self`, has those of that.

    Args:
        record: The capture.
        wanted: Whether there are any.

    Attributes:
        alone: Modules that attend, and whose outputs were not taken, nor those of one around them.
    """

    def __init__(self, record: CaptureRecord, wanted: bool) -> None:
        self._maps: dict[str, list[AttentionMap]] = {}
        for made in record.attention.maps if wanted and record.attention is not None else ():
            where = _OUTSIDE if made.module_path is None else made.module_path
            self._maps.setdefault(where, []).append(made)
        taken = dict.fromkeys([*record.outputs(), *record.inputs()])
        self._source = {path: self._find(path) for path in taken}
        shown = set(self._source.values())
        self.alone = [path for path in self._maps if path not in shown]
        self._source |= {path: path for path in self.alone}

    def _find(self, path: str) -> str | None:
        """Return the module whose maps are shown with another one."""
        if path in self._maps:
            return path
        within = [each for each in self._maps if each.startswith(f"{path}.")]
        return within[0] if len(within) == 1 and category_of(path) == "attention" else None

    def attends(self, path: str) -> bool:
        """Tell whether attention maps are shown with a module."""
        return self._source.get(path) is not None

    def calls(
        self, path: str, outputs: Sequence[Entry], inputs: Sequence[Entry]
    ) -> list[ModuleCall]:
        """Return the calls of a module.

        Args:
            path: Of the module.
            outputs: What it returned.
            inputs: What it was called with.
        """
        maps = self._maps.get(self._source.get(path) or "", [])
        returned = {entry.call: entry for entry in outputs}
        given = {entry.call: entry for entry in inputs}
        if not returned and not given:
            return [ModuleCall(made.call, made.step, maps=(made,)) for made in maps]
        numbers = sorted({*returned, *given})
        each = max(1, (maps[-1].call + 1) // (numbers[-1] + 1)) if maps else 1
        by_call = {made.call: made for made in maps}
        calls = []
        for number in numbers:
            entry = returned.get(number) or given[number]
            wanted = range(number * each, (number + 1) * each)
            found = tuple(by_call[call] for call in wanted if call in by_call)
            calls.append(
                ModuleCall(number, entry.step, returned.get(number), given.get(number), found)
            )
        return calls


def with_weights(value: Any, maps: Sequence[AttentionMap], name: str, leave_out: LeaveOut) -> Any:
    """Return what a module returned with its attention weights as element 1.

    Args:
        value: What it returned, made plain.
        maps: Those of this call.
        name: What messages call it.
        leave_out: Is told of maps that can't be read, and of all behind the first.
    """
    if not maps:
        return value
    for extra in maps[1:]:
        leave_out(name, f"a further attention map of the same call, {extra.shape}; save_npz")
    made = maps[0]
    try:
        first = np.asarray(made[:1, :1, :1])
    except VisualizerError as error:
        leave_out(f"{name}, attention", str(error))
        return value
    items = list(value) if isinstance(value, list | tuple) else [value]
    items = [None if item is OMITTED else item for item in items] or [None]
    if len(items) > 1 and _is_map(items[1], made, first):
        return items
    return [items[0], made, *items[2 if len(items) > 1 and items[1] is None else 1 :]]


def _is_map(value: Any, made: AttentionMap, first: Any) -> bool:
    """Tell whether a module has returned its weights itself."""
    if not isinstance(value, np.ndarray) or value.shape != made.shape:
        return False
    return np.allclose(value[:1, :1, :1].astype(first.dtype), first, atol=0.02)
