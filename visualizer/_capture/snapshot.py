"""Copies of values that the program can't change any more.

Libraries are recognised by the types of what arrives and never imported: all of this works in a
Python that has neither torch nor numpy.
"""

from __future__ import annotations

import copy
import dataclasses
import numbers
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from visualizer._capture.tensors import (
    CannotRecordError,
    copy_narrow,
    fast_tensor_to_array,
    refuse_proxy,
    tensor_to_array,
)

__all__ = [
    "CannotRecordError",
    "Narrow",
    "Reference",
    "nbytes",
    "snapshot",
    "snapshot_narrow",
    "widen",
]


@dataclass(frozen=True, slots=True)
class Reference:
    """An object that was kept by reference: nobody knows how to copy it, and it may change.

    Attributes:
        value: The object itself.
    """

    value: Any


class Narrow:
    """A copy of a tensor in a type that numpy has not, of less bytes than the float32 it becomes.

    Attributes:
        tensor: On the CPU, contiguous.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return int(self.tensor.nbytes)

    def to_array(self) -> Any:
        """Return the values as an array of float32."""
        return tensor_to_array(self.tensor)


_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_IMMUTABLE = (numbers.Number, str, bytes, type(None), Enum, type, type(...), range)


def snapshot(value: Any) -> Any:
    """Return a value as nobody else can change it.

    Tensors become writable numpy arrays on the CPU, without autograd graph; bfloat16 and the
    float8 types become float32, every other type stays. Whatever has `__array__` becomes an
    array. Lists, tuples, dicts and dataclasses keep their structure (and what is shared or
    circular in them); numbers, strings and None stay. Anything else comes back as a
    `Reference`.

    Raises:
        CannotRecordError: A tensor that has no value at this time, as under `torch.vmap` or
            while it is traced.
    """
    if type(value) in _PLAIN:
        return value
    array = fast_tensor_to_array(value)
    return _copy(value, _Copier()) if array is None else array


def snapshot_narrow(value: Any) -> tuple[Any, bool]:
    """Return a snapshot with bfloat16 and float8 as `Narrow`, and whether there is any."""
    if type(value) in _PLAIN:
        return value, False
    array = fast_tensor_to_array(value)
    if array is not None:
        return array, False
    copier = _Copier(narrows=True)
    return _copy(value, copier), copier.has_narrow


def widen(snapped: Any) -> Any:
    """Return a snapshot with arrays in the place of what is `Narrow`."""
    return _Widener().copy(snapped)


def _copy(value: Any, copier: _Copier) -> Any:
    if isinstance(value, _IMMUTABLE):
        return value
    if _busy.active:
        raise CannotRecordError("another value was being copied, and that ran this function")
    _busy.active = True
    try:
        return copier.copy(value)
    finally:
        _busy.active = False


def nbytes(entry: Any) -> int:
    """Return the size of the arrays in an entry, in bytes; what is shared in it counts once."""
    if type(entry) in _PLAIN:
        return 0
    size = getattr(entry, "nbytes", None)
    if isinstance(size, int):
        return size
    total, seen, waiting = 0, set(), [entry]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, (*_IMMUTABLE, Reference)):
            continue
        seen.add(id(part))
        size = getattr(part, "nbytes", None)
        if isinstance(size, int):
            total += size
        elif isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, (list, tuple)):
            waiting.extend(part)
        elif dataclasses.is_dataclass(part):
            fields = dataclasses.fields(part)
            waiting.extend(getattr(part, field.name, None) for field in fields)
    return total


class _Busy(threading.local):
    active = False


_busy = _Busy()


class _Copier:
    """Copies one value. Remembers what it has copied, for shared and circular parts.

    Args:
        narrows: Whether tensors of types that numpy has not become `Narrow`.

    Attributes:
        has_narrow: Whether one did.
    """

    def __init__(self, *, narrows: bool = False) -> None:
        self._narrows, self.has_narrow = narrows, False
        self._copies: dict[int, Any] = {}
        self._originals: list[Any] = []  # keeps the ids above from being used again

    def copy(self, value: Any) -> Any:
        if isinstance(value, _IMMUTABLE):
            return value
        if id(value) in self._copies:
            return self._copies[id(value)]
        refuse_proxy(value)
        for recognises, make in _MAKERS:
            if recognises(value):
                return self._remember(value, make(self, value))
        return Reference(value)

    def _remember(self, value: Any, made: Any) -> Any:
        self._copies[id(value)] = made
        self._originals.append(value)
        return made

    def of_tensor(self, value: Any) -> Any:
        narrow = copy_narrow(value) if self._narrows else None
        if narrow is None:
            return tensor_to_array(value)
        self.has_narrow = True
        return Narrow(narrow)

    def of_list(self, value: list[Any]) -> list[Any]:
        made: list[Any] = self._remember(value, [])
        made.extend(map(self.copy, value))
        return made

    def of_tuple(self, value: tuple[Any, ...]) -> Any:
        items = tuple(map(self.copy, value))
        if type(value) is tuple:
            return items
        named: Callable[..., Any] | None = getattr(type(value), "_make", None)
        try:
            return named(items) if named is not None else type(value)(items)
        except Exception:  # a constructor of somebody's own
            return items

    def of_array(self, value: Any) -> Any:
        numpy = sys.modules["numpy"]
        if isinstance(value, numpy.generic) and not isinstance(value, numpy.void):
            return value  # a number
        if isinstance(value, numpy.ma.MaskedArray):
            return value.copy()
        # asarray first: an __array__ may give away the object's own memory.
        made = self._remember(value, numpy.asarray(value).copy())
        if made.dtype == object:
            for index, item in numpy.ndenumerate(made):
                made[index] = self.copy(item)
        return made

    def of_dict(self, value: dict[Any, Any]) -> Any:
        if type(value) is dict:
            made = self._remember(value, {})
            made.update((key, self.copy(item)) for key, item in value.items())
            return made
        try:  # an OrderedDict, a defaultdict, transformers' ModelOutput
            twin = self._remember(value, _twin(value))
            for key in list(twin.keys()):
                twin[key] = self.copy(value[key])
            for name, attribute in list(
                getattr(twin, "__dict__", {}).items()
            ):  # items as attributes, too
                if id(attribute) in self._copies:
                    object.__setattr__(twin, name, self._copies[id(attribute)])
            return twin
        except Exception:  # one that forbids it
            return self._remember(value, {key: self.copy(item) for key, item in value.items()})

    def of_dataclass(self, value: Any) -> Any:
        try:
            twin = self._remember(value, _twin(value))
            for field in dataclasses.fields(value):
                if hasattr(value, field.name):
                    object.__setattr__(twin, field.name, self.copy(getattr(value, field.name)))
            return twin
        except CannotRecordError:
            raise
        except Exception:  # one that can't be copied
            return Reference(value)


class _Widener(_Copier):
    """Makes arrays of what is `Narrow` in a snapshot; all else in it is ours already."""

    def copy(self, value: Any) -> Any:
        if isinstance(value, Narrow):
            if id(value) not in self._copies:
                self._remember(value, value.to_array())
            return self._copies[id(value)]
        return value if isinstance(value, Reference) else super().copy(value)

    def of_array(self, value: Any) -> Any:
        return value


def _twin(value: Any) -> Any:
    """Return a shallow copy that is another object; a `__copy__` may return its own."""
    twin = copy.copy(value)
    if twin is value:
        raise TypeError(f"{type(value).__qualname__} does not let itself be copied")
    return twin


def _is_tensor(value: Any) -> bool:
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def _has_array(value: Any) -> bool:
    return hasattr(type(value), "__array__") and "numpy" in sys.modules


_MAKERS: tuple[tuple[Callable[[Any], bool], Callable[[_Copier, Any], Any]], ...] = (
    (_is_tensor, _Copier.of_tensor),
    (_has_array, lambda copier, value: copier.of_array(value)),
    (lambda value: isinstance(value, list), _Copier.of_list),
    (lambda value: isinstance(value, tuple), _Copier.of_tuple),
    (lambda value: isinstance(value, dict), _Copier.of_dict),
    (dataclasses.is_dataclass, _Copier.of_dataclass),
    (lambda value: type(value) is bytearray, lambda copier, value: bytearray(value)),
)
