"""Attention maps in a store: what they are computed from, and what is known about them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from visualizer import errors
from visualizer._printable import printable
from visualizer.attention import AttentionCall, AttentionMap, Mask, OutputGradient
from visualizer.attention.picks import Shape
from visualizer.errors import (
    DamagedError,
    MapRefusedError,
    NoGradientError,
    VisualizerError,
)
from visualizer.store.index import Row
from visualizer.store.verify import refs_in

__all__ = ["Recent", "StoredMap", "row_of_map"]

_MASK = ("keys", "visible", "bias")


def row_of_map(made: AttentionMap, site: int) -> Row:
    """Return what is stored of a map: queries, keys and mask, or weights; never computed from them.

    A map that is refused is stored as that.

    Args:
        made: The map.
        site: The place of its module among those that attended.
    """
    record = made.record
    facts: dict[str, Any] = {"site": site, "source": record.source}
    tensors: dict[str, Tensor] = {}
    try:
        found = record.read()
        assert isinstance(found, AttentionCall | Tensor)
        if isinstance(found, AttentionCall):
            facts["call"], tensors = _facts_of_call(found), _tensors_of_call(found)
        else:
            tensors = {"weights": found}
        tensors |= _gradient(record, facts)
    except Exception as error:
        facts["refused"] = [_error_name(error), str(error)]
    for name in ("confirmed", "is_causal"):
        with suppress(Exception):  # the same one
            facts[name] = getattr(record, name)
    lead = tensors.get("query", tensors.get("weights"))
    return Row(
        kind="attention",
        value=tensors,
        facts=facts,
        module_path=record.module_path,
        layer=record.layer,
        call=record.call,
        step=record.step,
        shape=record.shape,
        dtype=None if lead is None else str(lead.dtype).removeprefix("torch."),
        placement=None if lead is None or lead.device.type == "cpu" else str(lead.device),
    )


def _facts_of_call(call: AttentionCall) -> dict[str, Any]:
    mask = call.mask
    return {
        "scale": _number(call.scale),
        "softcap": None if call.softcap is None else _number(call.softcap),
        "empty_rows": _number(call.empty_rows),
        "causal": mask.causal,
        "window": mask.window,
        "hidden": _number(mask.hidden),
    }


def _number(value: float) -> str:
    return float(value).hex()  # JSON has neither infinity nor NaN


def _tensors_of_call(call: AttentionCall) -> dict[str, Tensor]:
    first, last = call.mask.spans or (None, None)
    found = {"query": call.query, "key": call.key, "sinks": call.sinks, "first": first}
    found |= {"last": last, **{name: getattr(call.mask, name) for name in _MASK}}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _gradient(record: Any, facts: dict[str, Any]) -> dict[str, Tensor]:
    try:
        found = record.read_gradient()
    except VisualizerError as error:
        facts["no_gradient"] = [_error_name(error), str(error)]
        return {}
    if isinstance(found, OutputGradient):
        return {"output_gradient": found.output, "value": found.value}
    return {"gradient": found}


def _error_name(error: Exception) -> str:
    return type(error).__name__ if isinstance(error, VisualizerError) else "MapRefusedError"


class Recent:
    """What was read last, as long as it is not too much: maps are read many times in a row.

    Args:
        max_bytes: How much is kept, beside what was read at last.
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._found: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: int, nbytes: int, read: Callable[[], Any]) -> Any:
        """Return what was read before, or read it."""
        with self._lock:
            if key not in self._found:
                total = nbytes + sum(size for _, size in self._found.values())
                while self._found and total > self._max_bytes:
                    total -= self._found.popitem(last=False)[1][1]
                self._found[key] = read(), nbytes
            self._found.move_to_end(key)
            return self._found[key][0]


class Decodes(Protocol):
    """A store, whole or still being written."""

    @property
    def path(self) -> Path: ...

    def decode(self, tree: Any) -> Any:
        """Return the value of a tree."""
        ...


class StoredMap:
    """An attention call in a store: a `MapRecord`. Its tensors are read when they are needed.

    Attributes:
        shape: Sizes of batch, head, query, key.
        module_path: Of the module that called.
        layer: Its index.
        call: Index of the call, of this module.
        step: Index of the root model's forward.
        source: How the call was seen.
        confirmed: Whether it was found to agree with the model's own output, before it was stored.
        is_causal: Whether queries see no key behind their own place; None is not known.
        site: The place of its module among those that attended.
    """

    def __init__(self, store: Decodes, row: Row, recent: Recent) -> None:
        self._store, self._row, self._recent = store, row, recent
        self._facts: Mapping[str, Any] = row.facts or {}
        try:
            batch, head, query, key = row.shape or ()
        except ValueError:
            raise self._damaged(f"it has the shape {row.shape}") from None
        self.shape: Shape = (batch, head, query, key)
        self.module_path, self.layer = row.module_path, row.layer
        self.call, self.step = row.call, row.step
        self.source = str(self._facts.get("source"))
        site = self._facts.get("site", -1)
        self.site: int = site if type(site) is int else -1
        self.confirmed: bool | None = self._facts.get("confirmed")
        self.is_causal: bool | None = self._facts.get("is_causal")

    def _damaged(self, why: Any) -> DamagedError:
        return DamagedError(
            f"the attention map of {self._row.module_path}, call {self._row.call}, can't be read "
            f"from {self._store.path}: {why}"
        )

    def _raise(self, fact: str, default: type[VisualizerError]) -> None:
        """Raise an error again that was one before."""
        written = self._facts.get(fact)
        if written is None:
            return
        if not isinstance(written, list) or len(written) != 2:
            raise self._damaged(f"it says {fact}: {written}")
        name, message = map(str, written)
        raise (getattr(errors, name) if name in errors.__all__ else default)(printable(message))

    def held(self) -> dict[Any, int]:
        """Return the bytes that are stored, by place; what is shared has one."""
        return {(ref["unit"], ref["key"]): ref["bytes"] for ref in refs_in(self._row.value)}

    def read(self) -> AttentionCall | Tensor:
        """Return the call, or its weights.

        Raises:
            MapRefusedError, OverwrittenError: The map was refused before it was stored.
            DamagedError: What is stored is not what was written.
        """
        self._raise("refused", MapRefusedError)
        return self._recent.get(2 * id(self), self._size(_is_input), self._read)

    def read_gradient(self) -> OutputGradient | Tensor:
        """Return what the gradient of the map is computed from, or itself.

        Raises:
            NoGradientError: There is none.
            DamagedError: What is stored is not what was written.
        """
        self._raise("no_gradient", NoGradientError)
        self._raise("refused", NoGradientError)
        size = self._size(lambda name: not _is_input(name))
        return self._recent.get(2 * id(self) + 1, size, self._read_gradient)

    def _read(self) -> AttentionCall | Tensor:
        try:
            made = self._make()
        except VisualizerError:
            raise
        except Exception as error:  # of facts that are not ours
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        if tuple(made.shape) != self.shape:
            raise self._damaged(f"it has the shape {tuple(made.shape)}, and should {self.shape}")
        return made

    def _make(self) -> AttentionCall | Tensor:
        found = self._tensors(_is_input)
        if "weights" in found:
            return found["weights"]
        facts = self._facts["call"]
        softcap = facts["softcap"]
        mask = Mask(
            causal=facts["causal"],
            window=facts["window"],
            spans=(found["first"], found["last"]) if "first" in found else None,
            hidden=float.fromhex(facts["hidden"]),
            **{name: found.get(name) for name in _MASK},
        )
        return AttentionCall(
            found["query"],
            found["key"],
            float.fromhex(facts["scale"]),
            mask=mask,
            softcap=None if softcap is None else float.fromhex(softcap),
            sinks=found.get("sinks"),
            empty_rows=float.fromhex(facts["empty_rows"]),
        )

    def _read_gradient(self) -> OutputGradient | Tensor:
        found = self._tensors(lambda name: not _is_input(name))
        if "gradient" in found:
            return found["gradient"]
        try:
            return OutputGradient(found["output_gradient"], found["value"])
        except KeyError as error:
            raise self._damaged(f"it has no {error}") from None

    def _tensors(self, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        return {name: self._store.decode(tree) for name, tree in self._trees(wanted)}

    def _size(self, wanted: Callable[[str], bool]) -> int:
        refs = (ref for _, tree in self._trees(wanted) for ref in refs_in(tree))
        return sum(ref["bytes"] for ref in refs)

    def _trees(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
        return ((name, tree) for name, tree in self._row.value["items"] if wanted(name))


def _is_input(name: str) -> bool:
    return name not in ("output_gradient", "value", "gradient")
