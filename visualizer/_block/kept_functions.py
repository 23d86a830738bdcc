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
    if not _are_kept(functions, model):  # as hardly ever, and that is told fast
        return []
    of_class: dict[type, list[tuple[str, str]]] = {}
    found = []
    for spot, module in spots(model):
        if _is_torchs(module):
            continue
        cls = type(module)
        if cls not in of_class:
            of_class[cls] = [each for base in _bases_of(cls) for each in _find(functions, base)]
        for name, function in _find(functions, module) + of_class[cls]:
            found.append((spot.path, f"it keeps {function} in its attribute {name!r}"))
    return found


def _are_kept(functions: Mapping[int, str], model: nn.Module) -> bool:
    """Tell whether some module keeps one of some functions."""
    modules = [module for module in model.modules() if not _is_torchs(module)]
    values: list[Any] = []
    for base in {base for cls in set(map(type, modules)) for base in _bases_of(cls)}:
        values.extend(vars(base).values())
    for module in modules:
        values.extend(vars(module).values())
    wrappings = {cls for cls in set(map(type, values)) if issubclass(cls, _WRAPPINGS)}
    values += [_unwrapped(value) for value in values if type(value) in wrappings]
    return not functions.keys().isdisjoint(map(id, values))


def _is_torchs(module: nn.Module) -> bool:
    """Tell whether a module runs torch's own code, which calls no function that it was given."""
    if not type(module).__module__.startswith("torch.nn.") or "forward" in vars(module):
        return False
    return all(base.__module__.startswith("torch.nn.") for base in _bases_of(type(module)))


def _bases_of(cls: type) -> list[type]:
    """Return a module's class and its bases, without torch's base of all modules."""
    return [each for each in cls.__mro__ if issubclass(each, nn.Module) and each is not nn.Module]


def _find(functions: Mapping[int, str], owner: object) -> list[tuple[str, str]]:
    """Return name and function of the attributes that are one of some, out of their wrappings."""
    found = ((name, id(_unwrapped(value))) for name, value in list(vars(owner).items()))
    return [(name, functions[each]) for name, each in found if each in functions]


_WRAPPINGS = (staticmethod, functools.partial)


def _unwrapped(value: Any) -> Any:
    value = value.__func__ if isinstance(value, staticmethod) else value
    while isinstance(value, functools.partial):
        value = value.func
    return value
