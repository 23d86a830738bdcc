"""Attention functions that modules keep in their attributes, where no stand-in is seen."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from visualizer._block.wrappers import spots
from visualizer._intercept.install import attention_functions

__all__ = ["find_kept_functions"]


def find_kept_functions(model: nn.Module) -> list[tuple[str, str]]:
    """Return `(module path, reason)` for functions that modules keep, which are not seen."""
    functions = attention_functions()
    of_class: dict[type, list[tuple[str, int]]] = {}
    found = []
    for spot, module in spots(model):
        cls = type(module)
        if cls not in of_class:
            bases = _bases_of(cls)
            of_class[cls] = [each for base in bases for each in _find(functions, vars(base))]
        for name, which in _find(functions, vars(module)) + of_class[cls]:
            reason = f"it keeps {functions[which]} in its attribute {name!r}"
            found.append((spot.path, reason))
    return found


def _bases_of(cls: type) -> list[type]:
    """Return a module's class and its bases, without torch's base of all modules."""
    classes = [each for each in cls.__mro__ if issubclass(each, nn.Module)]
    return classes[: classes.index(nn.Module)]


def _find(functions: Mapping[int, str], attributes: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return name and function of the attributes that are one of some, out of their wrappings."""
    found = []
    for name, value in list(attributes.items()):
        if isinstance(value, _WRAPPINGS):
            value = _unwrapped(value)
        if id(value) in functions:
            found.append((name, id(value)))
    return found


_WRAPPINGS = (staticmethod, functools.partial)


def _unwrapped(value: Any) -> Any:
    value = value.__func__ if isinstance(value, staticmethod) else value
    while isinstance(value, functools.partial):
        value = value.func
    return value
