"""Softmax, for models that compute attention step by step: the fallback.

What is a map cannot be proven here, so these are marked as unconfirmed, and what does not look
like one (the router of a mixture of experts, the logits of a vocabulary) is left alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import Tensor, nn

from visualizer._intercept.frames import modules_on_stack
from visualizer._intercept.multihead import seen_by_multi_head
from visualizer._intercept.observation import Observation, WeightsObservation
from visualizer._intercept.observers import Sighting, depth, find_observers
from visualizer._intercept.telling import tell
from visualizer.attention.unobserved import unobserved

__all__ = ["make_softmax"]


def make_softmax(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what stands in for a softmax: of `torch`, its `functional`, or a tensor's."""

    @functools.wraps(original)
    def softmax(*args: Any, **kwargs: Any) -> Tensor:
        if depth.inside or not find_observers():
            return original(*args, **kwargs)
        depth.inside += 1  # functional.softmax calls the tensor's
        try:
            weights = original(*args, **kwargs)
        finally:
            depth.inside -= 1
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if _is_over_keys(weights, dim) and not seen_by_multi_head(weights):
            module = _owner(sys._getframe(1))
            if _looks_like_attention(weights, module):
                tell(Sighting(_observe, (weights, module), {}, module=module))
        return weights

    return softmax


def _owner(frame: FrameType) -> Any:
    """Return the module that asked for a softmax; a module that is one belongs to another."""
    modules = modules_on_stack(frame)
    return next((found for found in modules if not isinstance(found, nn.Softmax)), None)


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
    with unobserved(weights.device.type):
        weights = _four_axes(weights.detach(), getattr(module, "num_heads", None))
    batch, head, query, key = weights.shape
    return WeightsObservation(
        source="softmax", shape=(batch, head, query, key), module=module, weights=weights
    )


def _four_axes(weights: Tensor, heads: Any) -> Tensor:
    if weights.dim() == 3:
        split = heads if isinstance(heads, int) and len(weights) % heads == 0 else 1
        return weights.unflatten(0, (-1, split))
    return weights.flatten(0, -4) if weights.dim() > 4 else weights
