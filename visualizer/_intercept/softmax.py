"""Softmax, for models that compute attention step by step: the fallback.

What is a map cannot be proven here, so these are marked as unconfirmed, and what does not look
like one (the router of a mixture of experts, the logits of a vocabulary) is left alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from visualizer._intercept.frames import innermost_module
from visualizer._intercept.multihead import seen_by_multi_head
from visualizer._intercept.observation import Observation, WeightsObservation
from visualizer._intercept.observers import find_observers, inside, is_inside
from visualizer._intercept.telling import tell

__all__ = ["make_softmax"]


def make_softmax(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what stands in for a softmax: of `torch`, its `functional`, or a tensor's."""

    @functools.wraps(original)
    def softmax(*args: Any, **kwargs: Any) -> Tensor:
        if is_inside() or not find_observers():
            return original(*args, **kwargs)
        with inside():  # functional.softmax calls the tensor's
            weights = original(*args, **kwargs)
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if _is_over_keys(weights, dim) and not seen_by_multi_head(weights):
            module = innermost_module(sys._getframe(1))
            if _looks_like_attention(weights, module):
                tell(lambda: _observe(weights, module))
        return weights

    return softmax


def _is_over_keys(weights: Tensor, dim: Any) -> bool:
    last = (-1, weights.dim() - 1)
    return weights.dim() > 2 and dim in last and weights.is_floating_point()


def _looks_like_attention(weights: Tensor, module: Any) -> bool:
    """Tell whether the last two axes may be query and key."""
    name = type(module).__name__.lower()
    if any(word in name for word in ("router", "gate", "gating", "expert", "topk")):
        return False
    if "attn" in name or "attention" in name:
        return True
    queries, keys = weights.shape[-2:]
    return queries == keys and keys > 1


def _observe(weights: Tensor, module: Any) -> Observation:
    heads = getattr(module, "num_heads", None)
    if weights.dim() == 3:
        split = heads if isinstance(heads, int) and len(weights) % heads == 0 else 1
        weights = weights.unflatten(0, (-1, split))
    elif weights.dim() > 4:
        weights = weights.flatten(0, -4)
    batch, head, query, key = weights.shape
    return WeightsObservation(
        source="softmax", shape=(batch, head, query, key), module=module, weights=weights
    )
