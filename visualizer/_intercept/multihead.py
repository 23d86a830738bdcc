"""`torch.nn.functional.multi_head_attention_forward`, where it computes the map itself.

Asked for weights, it multiplies and takes the softmax step by step. The products are seen on the
way, and the map is rebuilt from their factors like any other. Not asked, it calls
`scaled_dot_product_attention`, which is seen anyway.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from visualizer._intercept.observation import FourAxes, QueryKeyObservation
from visualizer._intercept.observers import Sighting, depth, find_observers
from visualizer._intercept.telling import tell
from visualizer.attention import Mask

__all__ = ["make_baddbmm", "make_bmm", "make_multi_head", "seen_by_multi_head"]


@dataclass(slots=True)
class _Steps:
    """What one call has computed so far."""

    num_heads: int
    query: Tensor | None = None
    key: Tensor | None = None
    mask: Tensor | None = None
    weights: Tensor | None = None


class _Running(threading.local):
    steps: _Steps | None = None


_running = _Running()


def make_multi_head(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands in for the function."""

    @functools.wraps(original)
    def multi_head_attention_forward(*args: Any, **kwargs: Any) -> Any:
        if depth.inside or not find_observers():
            return original(*args, **kwargs)
        num_heads = kwargs["num_heads"] if "num_heads" in kwargs else args[4]
        before, steps = _running.steps, _Steps(num_heads)
        _running.steps = steps
        try:
            result = original(*args, **kwargs)
        finally:
            _running.steps = before
        if steps.weights is not None:
            tell(Sighting(_observe, (steps,), {}))
        return result

    return multi_head_attention_forward


def seen_by_multi_head(weights: Tensor) -> bool:
    """Tell whether a softmax belongs to a call that runs, which then takes it."""
    steps = _running.steps
    if steps is None or steps.key is None or steps.weights is not None:
        return False
    steps.weights = weights
    return True


def make_bmm(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what stands in for `torch.bmm`."""

    @functools.wraps(original)
    def bmm(input: Tensor, mat2: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        steps = _running.steps
        if steps is not None and steps.key is None:
            steps.query, steps.key = input, mat2
        return original(input, mat2, *args, **kwargs)

    return bmm


def make_baddbmm(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what stands in for `torch.baddbmm`."""

    @functools.wraps(original)
    def baddbmm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        steps = _running.steps
        if steps is not None and steps.key is None and len(args) == 2:
            steps.mask, steps.query, steps.key = input, args[0], args[1]
        return original(input, *args, **kwargs)

    return baddbmm


def _observe(steps: _Steps) -> QueryKeyObservation:
    assert steps.query is not None
    assert steps.key is not None
    assert steps.weights is not None
    heads, mask = steps.num_heads, steps.mask
    many, queries, _ = steps.query.shape
    return QueryKeyObservation(
        source="multi_head_attention",
        shape=(many // heads, heads, queries, steps.key.shape[-1]),
        tensors=FourAxes(steps.query, steps.key, None, steps.query, steps.weights),
        parts=(mask,),
        arrange=lambda tensors: _arrange(tensors, heads),
        make_mask=lambda: Mask() if mask is None else _mask(mask, heads),
        scale=1.0,  # the queries are scaled before
        empty_rows=float("nan"),
    )


def _arrange(tensors: FourAxes, heads: int) -> FourAxes:
    """Part batch and heads, which are one axis; the keys are transposed for the product."""
    query = tensors.query.unflatten(0, (-1, heads))
    key = tensors.key.transpose(-2, -1).unflatten(0, (-1, heads))
    weights = None if tensors.weights is None else tensors.weights.unflatten(0, (-1, heads))
    return FourAxes(query, key, None, query, weights)


def _mask(mask: Tensor, heads: int) -> Mask:
    """Return an added mask of shape `(batch · head, query, key)` or `(1, query, key)`."""
    mask = mask.detach()
    return Mask.from_tensor(mask if len(mask) == 1 else mask.unflatten(0, (-1, heads)))
