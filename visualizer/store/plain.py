"""Values as what every format has: arrays, numbers, strings, lists, tuples and dicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from visualizer._block.entry import ModuleInputs
from visualizer._capture.snapshot import CannotRecordError, Reference
from visualizer._capture.tensors import tensor_to_array
from visualizer.store.values import Skipped

__all__ = ["OMITTED", "LeaveOut", "leaves", "make_plain"]

LeaveOut = Callable[[str, str], None]
"""Is told the name of what is left out, and why."""

OMITTED: Any = object()
"""Stands for a value that can't be written."""

_DEEPEST = 100
_LARGEST_BITS = 1024


def make_plain(value: Any, name: str, leave_out: LeaveOut) -> Any:
    """Return a value without anything of a class of its own; `OMITTED` where nothing is left.

    In lists and tuples None stands in the place of what is left out; dicts are without it.

    Args:
        value: Of an entry.
        name: What messages call it.
        leave_out: Is told what can't be written.
    """
    return _Plain(leave_out).make(value, name, 0)


class _Plain:
    """Makes one value plain. Remembers what it is in, for what is in itself."""

    def __init__(self, leave_out: LeaveOut) -> None:
        self._leave_out = leave_out
        self._around: set[int] = set()

    def make(self, value: Any, name: str, depth: int) -> Any:
        if _is_number_or_text(value):
            return value
        if type(value) is int:
            return self.omit(name, f"an integer of {value.bit_length()} bits")
        if isinstance(value, np.generic) and value.dtype.kind in "biufcU":
            return value if value.dtype.itemsize > 8 and value.dtype.kind in "fc" else value.item()
        if depth > _DEEPEST:
            return self.omit(name, f"nested deeper than {_DEEPEST}")
        if id(value) in self._around:
            return self.omit(name, "it is within itself")
        self._around.add(id(value))
        try:
            return self._make_nested(value, name, depth + 1)
        finally:
            self._around.discard(id(value))

    def omit(self, name: str, why: str) -> Any:
        self._leave_out(name, why)
        return OMITTED

    def _make_nested(self, value: Any, name: str, depth: int) -> Any:
        for recognises, make in _MAKERS:
            if recognises(value):
                return make(self, value, name, depth)
        return self.omit(name, f"an object of {_type_name(value)}")

    def items(self, values: Iterable[Any], name: str, depth: int) -> Iterator[Any]:
        for place, item in enumerate(values):
            made = self.make(item, f"{name}[{place}]", depth)
            yield None if made is OMITTED else made

    def pairs(self, pairs: Iterable[tuple[Any, Any]], name: str, depth: int) -> dict[Any, Any]:
        made = {}
        for key, item in pairs:
            if not _is_number_or_text(key):
                self.omit(name, f"an item whose key is an object of {_type_name(key)}")
                continue
            found = self.make(item, f"{name}[{key!r}]", depth)
            if found is not OMITTED:
                made[key] = found
        return made

    def of_tensor(self, value: Tensor, name: str, depth: int) -> Any:
        try:
            return tensor_to_array(value)
        except CannotRecordError as error:
            return self.omit(name, str(error))

    def of_masked(self, value: Any, name: str, depth: int) -> Any:
        mask = np.ma.getmaskarray(value)
        return {"data": self.of_array(np.asarray(value.data), name, depth), "mask": mask}

    def of_array(self, value: NDArray[Any], name: str, depth: int) -> Any:
        dtype = value.dtype
        if dtype.kind == "O":
            return (
                list(self.items(value.tolist(), name, depth))
                if value.ndim
                else self.make(value.item(), name, depth)
            )
        if dtype.kind == "V" and dtype.names is None and not dtype.name.startswith("void"):
            return value.astype(np.float32)  # bfloat16 of ml_dtypes, as get_local has it
        return value

    def of_dataclass(self, value: Any, name: str, depth: int) -> Any:
        names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
        return self.pairs(((each, getattr(value, each)) for each in names), name, depth)


def _is_number_or_text(value: Any) -> bool:
    if type(value) is int:
        return value.bit_length() <= _LARGEST_BITS
    return type(value) in (str, bool, float, complex, type(None))


def _type_name(value: Any) -> str:
    if isinstance(value, Skipped):
        return value.type_name
    cls = type(value.value if isinstance(value, Reference) else value)
    return f"{cls.__module__}:{cls.__qualname__}"


_MAKERS: tuple[tuple[Callable[[Any], bool], Any], ...] = (
    (lambda value: isinstance(value, Tensor), _Plain.of_tensor),
    (lambda value: isinstance(value, np.ma.MaskedArray), _Plain.of_masked),
    (lambda value: isinstance(value, np.ndarray), _Plain.of_array),
    (
        lambda value: isinstance(value, np.generic),
        lambda plain, value, name, depth: plain.of_array(np.asarray(value), name, depth),
    ),
    (
        lambda value: isinstance(value, ModuleInputs),
        lambda plain, value, name, depth: {
            "args": tuple(plain.items(value.args, f"{name}.args", depth)),
            "kwargs": plain.pairs(value.kwargs.items(), f"{name}.kwargs", depth),
        },
    ),
    (
        lambda value: isinstance(value, tuple),
        lambda plain, value, name, depth: tuple(plain.items(value, name, depth)),
    ),
    (
        lambda value: isinstance(value, list),
        lambda plain, value, name, depth: list(plain.items(value, name, depth)),
    ),
    (
        lambda value: isinstance(value, dict),
        lambda plain, value, name, depth: plain.pairs(value.items(), name, depth),
    ),
    (
        lambda value: type(value) in (bytes, bytearray),
        lambda plain, value, name, depth: np.frombuffer(bytes(value), np.uint8),
    ),
    (
        lambda value: (
            dataclasses.is_dataclass(value) and not isinstance(value, type | Reference | Skipped)
        ),
        _Plain.of_dataclass,
    ),
)


def leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield what is in lists, tuples and dicts, with where it is: "name.0.key"."""
    if isinstance(tree, list | tuple):
        for place, item in enumerate(tree):
            yield from leaves(item, f"{name}.{place}")
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from leaves(item, f"{name}.{key}")
    else:
        yield name, tree
