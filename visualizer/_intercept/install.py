"""Put what sees attention in its place, and take it out again."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.jit._builtins
from torch.nn import functional

from visualizer._intercept.borrowed import forget_parts
from visualizer._intercept.graphs import OwnGraphs
from visualizer._intercept.multihead import make_baddbmm, make_bmm
from visualizer._intercept.patches import aliases, patches, replace_references
from visualizer._intercept.projected import make_encoder_layer, make_native_multi_head
from visualizer._intercept.registry import find_registry, make_get_interface
from visualizer._intercept.sdpa import make_sdpa
from visualizer._intercept.softmax import make_softmax

__all__ = ["AttentionPatches", "attention_functions"]

_Make = Callable[[Any], Any]
_IMPORTED_BY_NAME: tuple[tuple[Any, str, _Make], ...] = (
    (functional, "scaled_dot_product_attention", make_sdpa),
    (torch, "softmax", make_softmax),
)
_LOOKED_UP: tuple[tuple[Any, str, _Make], ...] = (
    (torch.Tensor, "softmax", make_softmax),
    (torch, "bmm", make_bmm),
    (torch, "baddbmm", make_baddbmm),
    (torch, "_native_multi_head_attention", make_native_multi_head),
    (torch, "_transformer_encoder_layer_fwd", make_encoder_layer),
)
_IN_MODULES = {
    id(function): function
    for function in (getattr(owner, name) for owner, name, _ in _IMPORTED_BY_NAME)
}


class _StandIn:
    """What stands in for a function. Made once, since blocks may be many and short.

    Attributes:
        wrapper: It.
        original: The function.
        count: How often it is referred to when it is in no place.
    """

    __slots__ = ("count", "original", "wrapper")

    def __init__(self, make: _Make, original: Any) -> None:
        self.original = original
        self.wrapper = make(original)
        self.count = self.references()

    def references(self) -> int:
        """Return how often the wrapper is referred to."""
        return sys.getrefcount(self.wrapper)


_stand_ins: dict[int, _StandIn] = {}  # by the original's id
_scripted = torch.jit._builtins._get_builtin_table()
"""By its id, what torch.jit.script takes a function for. It is complete before anything is
replaced, and knows what stands in for a function, too."""


class AttentionPatches:
    """What one capture has replaced to see attention; shared with the others that are open."""

    def __init__(self) -> None:
        self._places: list[tuple[Any, str]] = []
        self._graphs = OwnGraphs()

    def install(self) -> None:
        """Replace the functions, and the names that modules have imported them by."""
        places = [*_IMPORTED_BY_NAME, *_LOOKED_UP]
        registry = find_registry()
        if registry is not None:
            places.append((registry, "get_interface", make_get_interface))
        for owner, name, _ in places:
            _take_back(owner, name)
        makers = {id(getattr(owner, name)): make for owner, name, make in _IMPORTED_BY_NAME}
        places += [
            (module, name, makers[id(function)])
            for module, name, function in aliases.find(_IN_MODULES)
            if id(function) in makers
        ]
        for owner, name, make in places:
            patches.acquire(owner, name, functools.partial(_stand_in, make))
            self._places.append((owner, name))
        self._graphs.install()

    def remove(self) -> list[str]:
        """Put everything back, and return what could not be."""
        troubles = self._graphs.remove()
        forget_parts()
        released = [patches.release(*self._places.pop()) for _ in range(len(self._places))]
        for each in list(_stand_ins.values()):
            if each.references() > each.count and not patches.uses(each.wrapper):
                replace_references(each.wrapper, each.original)
        return troubles + [trouble for trouble in released if trouble is not None]


def attention_functions() -> dict[int, str]:
    """Return the names of functions that are seen when they are looked up, by `id`."""
    owner, name, _ = _IMPORTED_BY_NAME[0]
    pair = patches.pair(owner, name)
    found = (getattr(owner, name),) if pair is None else pair
    return {id(function): f"{owner.__name__}.{name}" for function in found}


def _stand_in(make: _Make, original: Any) -> Any:
    """Return what stands in for a function."""
    found = _stand_ins.get(id(original))
    if found is None:
        found = _stand_ins[id(original)] = _StandIn(make, original)
        operator = _scripted.get(id(original))
        if operator is not None:
            _scripted[id(found.wrapper)] = operator
    return found.wrapper


def _take_back(owner: Any, name: str) -> None:
    """Put the original where somebody has put what once stood in for it."""
    if patches.pair(owner, name) is None:
        value = vars(owner).get(name)
        for each in _stand_ins.values():
            if value is each.wrapper:
                setattr(owner, name, each.original)
