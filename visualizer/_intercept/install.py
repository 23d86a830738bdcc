"""Put what sees attention in its place, and take it out again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from visualizer._intercept.multihead import make_baddbmm, make_bmm, make_multi_head
from visualizer._intercept.patches import aliases, patches
from visualizer._intercept.projected import make_encoder_layer, make_native_multi_head
from visualizer._intercept.registry import find_registry, make_get_interface
from visualizer._intercept.sdpa import make_sdpa
from visualizer._intercept.softmax import make_softmax

__all__ = ["AttentionPatches", "attention_functions"]

_Place = tuple[Any, str]
_IMPORTED_BY_NAME: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = (
    (functional, "scaled_dot_product_attention", make_sdpa),
    (functional, "multi_head_attention_forward", make_multi_head),
    (functional, "softmax", make_softmax),
    (torch, "softmax", make_softmax),
)
_LOOKED_UP: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = (
    (torch.Tensor, "softmax", make_softmax),
    (torch, "bmm", make_bmm),
    (torch, "baddbmm", make_baddbmm),
    (torch, "_native_multi_head_attention", make_native_multi_head),
    (torch, "_transformer_encoder_layer_fwd", make_encoder_layer),
)


class AttentionPatches:
    """What one capture has replaced to see attention; shared with the others that are open."""

    def __init__(self) -> None:
        self._places: list[_Place] = []

    def install(self) -> None:
        """Replace the functions, and the names that modules have imported them by."""
        try:
            for owner, name, make in (*_IMPORTED_BY_NAME, *_LOOKED_UP):
                self._acquire(owner, name, make)
            registry = find_registry()
            if registry is not None:
                self._acquire(registry, "get_interface", make_get_interface)
            wrappers = {id(original): wrapper for original, wrapper in _pairs()}
            ours = {id(wrapper): wrapper for wrapper in wrappers.values()}
            for module, name, value in list(aliases.find({*wrappers, *ours})):
                wrapper = wrappers.get(id(value)) or ours[id(value)]
                patches.acquire(module, name, _always(wrapper))
                self._places.append((module, name))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Put everything back, and what modules have imported by name meanwhile."""
        pairs = _pairs()
        while self._places:
            patches.release(*self._places.pop())
        originals = {id(wrapper): original for original, wrapper in pairs}
        left = {id(wrapper) for _, wrapper in pairs} - {id(wrapper) for _, wrapper in _pairs()}
        if left:
            for module, name, value in list(aliases.find({*left, *map(id, originals.values())})):
                if id(value) in left:
                    setattr(module, name, originals[id(value)])

    def _acquire(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        patches.acquire(owner, name, functools.partial(_stand_in, make))
        self._places.append((owner, name))


def attention_functions() -> dict[int, str]:
    """Return the names of functions that are seen when they are looked up, by `id`."""
    return {
        id(original): f"{owner.__name__}.{name}"
        for owner, name, _ in _IMPORTED_BY_NAME[:2]
        for original in (_original(owner, name),)
    }


def _original(owner: Any, name: str) -> Any:
    pair = patches.pair(owner, name)
    return getattr(owner, name) if pair is None else pair[0]


@functools.lru_cache(maxsize=64)
def _stand_in(make: Callable[[Any], Any], original: Any) -> Any:
    """Return what stands in for a function; made once, since blocks may be many and short."""
    return make(original)


def _always(wrapper: Any) -> Callable[[Any], Any]:
    return lambda _: wrapper


def _pairs() -> list[tuple[Any, Any]]:
    found = (patches.pair(owner, name) for owner, name, _ in _IMPORTED_BY_NAME)
    return [pair for pair in found if pair is not None]
