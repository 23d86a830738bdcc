"""Softmax, for models that compute attention step by step: the fallback.

What is a map cannot be proven here, so these are marked as unconfirmed, and what does not look
like one (the router of a mixture of experts, the logits of a vocabulary) is left alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visualizer._intercept.frames import modules_on_stack
from visualizer._intercept.multihead import find_multi_head
from visualizer._intercept.observation import Observation, WeightsObservation
from visualizer._intercept.observers import Sighting, call_inside, depth, find_observers
from visualizer._intercept.telling import is_graph_recorded, tell, tell_errors
from visualizer.attention.unobserved import unobserved

__all__ = ["four_axes", "heads_of", "looks_like_attention", "make_softmax", "sight_weights"]

_FUNCTIONAL = functional.softmax.__code__


def make_softmax(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what stands in for a softmax, torch's or a tensor's."""

    @functools.wraps(original)
    def softmax(*args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_dynamo_compiling():  # which is told of it otherwise
            return original(*args, **kwargs)
        if depth.inside or not find_observers():
            return original(*args, **kwargs)
        weights = call_inside(original, *args, **kwargs)
        if isinstance(weights, Tensor) and not is_graph_recorded():
            with tell_errors():
                dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
                _look(weights, dim, sys._getframe(1))
        return weights

    return softmax


def _look(weights: Tensor, dim: Any, frame: FrameType | None) -> None:
    with unobserved():  # without what watches the functions that are called
        last = (-1, weights.dim() - 1)
        if weights.dim() < 3 or dim not in last or not weights.is_floating_point():
            return
        if frame is not None and frame.f_code is _FUNCTIONAL:
            frame = frame.f_back
        sighting = find_multi_head(weights, frame)
        if sighting is None:
            module = _owner(frame)
            if not looks_like_attention(weights.shape[-2:], module):
                return
            sighting = sight_weights(weights, module)
    tell(sighting)


def _owner(frame: FrameType | None) -> Any:
    """Return the module that asked for a softmax; a module that is one belongs to another."""
    modules = modules_on_stack(frame)
    return next((found for found in modules if not isinstance(found, nn.Softmax)), None)


def looks_like_attention(sizes: Sequence[int], module: Any) -> bool:
    """Tell whether the last two axes, of these sizes, may be query and key."""
    name = type(module).__name__.lower()
    if any(word in name for word in ("router", "gate", "gating", "expert", "topk")):
        return False
    if "attn" in name or "attention" in name:
        return True
    if torch._C._get_tracing_state() is not None:
        return False  # sizes are tensors then
    queries, keys = sizes
    return queries == keys and keys > 1


def sight_weights(weights: Tensor, module: Any) -> Sighting:
    """Return the sighting of weights that the program itself has."""
    return Sighting(_observe, (weights, module), {}, module=module)


def _observe(weights: Tensor, module: Any) -> Observation:
    heads = heads_of(module)
    with unobserved(weights.device.type):
        four = four_axes(weights.detach(), heads)
    batch, head, query, key = four.shape
    return WeightsObservation(
        source="softmax",
        shape=(batch, head, query, key),
        module=module,
        weights=four,
        program_weights=weights,
        arrange=lambda tensor: four_axes(tensor, heads),
    )


def heads_of(module: Any) -> Any:
    """Return the number of heads as a module tells it: torch's name for it, or diffusers'."""
    return getattr(module, "num_heads", getattr(module, "heads", None))


def four_axes(weights: Tensor, heads: Any) -> Tensor:
    """Return a tensor with heads as an axis of their own, and what is before them as the batch."""
    if weights.dim() == 3:
        split = heads if isinstance(heads, int) and len(weights) % heads == 0 else 1
        return weights.unflatten(0, (-1, split))
    return weights.flatten(0, -4) if weights.dim() > 4 else weights
