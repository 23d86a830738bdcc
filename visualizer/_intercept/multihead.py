"""`torch.nn.functional.multi_head_attention_forward`, where it computes the map itself.

Asked for weights, it multiplies and takes the softmax step by step. The products are seen on the
way, and the map is rebuilt from their factors like any other. Not asked, it calls
`scaled_dot_product_attention`, which is seen anyway.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from visualizer._intercept.observation import FourAxes, QueryKeyObservation
from visualizer._intercept.observers import Sighting, depth, find_observers
from visualizer.attention import Mask

__all__ = ["find_multi_head", "make_baddbmm", "make_bmm"]

_MULTI_HEAD = functional.multi_head_attention_forward.__code__


class _Product(NamedTuple):
    """The product of which the softmax is the map.

    Attributes:
        mask: What is added, shape `(batch · head, query, key)` or `(1, query, key)`.
        query: Shape `(batch · head, query, dim)`, scaled.
        key: Shape `(batch · head, dim, key)`.
    """

    mask: Tensor | None
    query: Tensor
    key: Tensor


class _Last(threading.local):
    """The product that waits for its softmax, and the frame that made it.

    A call makes two products; the second one is of the weights and the values.
    """

    product: _Product | None = None
    frame: int | None = None

    def note(self, frame: FrameType, product: _Product) -> None:
        if self.frame == id(frame) and self.product is None:  # its softmax has come
            self.frame = None
        elif depth.inside == 0 and find_observers():
            self.frame, self.product = id(frame), product


_last = _Last()


def make_bmm(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what stands in for `torch.bmm`."""

    @functools.wraps(original)
    def bmm(*args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_dynamo_compiling():
            return original(*args, **kwargs)
        frame = sys._getframe(1)
        if frame.f_code is _MULTI_HEAD and len(args) == 2:
            _last.note(frame, _Product(None, *args))
        return original(*args, **kwargs)

    return bmm


def make_baddbmm(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what stands in for `torch.baddbmm`."""

    @functools.wraps(original)
    def baddbmm(*args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_dynamo_compiling():
            return original(*args, **kwargs)
        frame = sys._getframe(1)
        if frame.f_code is _MULTI_HEAD and len(args) == 3:
            _last.note(frame, _Product(*args))
        return original(*args, **kwargs)

    return baddbmm


def find_multi_head(weights: Tensor, frame: FrameType | None) -> Sighting | None:
    """Return the sighting of the call that takes a softmax; None where it is not of this kind.

    Args:
        weights: The softmax.
        frame: Of the function that calls `functional.softmax`.
    """
    if frame is None or frame.f_code is not _MULTI_HEAD or _last.product is None:
        return None
    product, _last.product = _last.product, None
    heads = frame.f_locals["num_heads"]
    parts = () if product.mask is None else (product.mask,)
    return Sighting(_observe, (product, weights, heads), {}, parts=parts)


def _observe(product: _Product, weights: Tensor, heads: int) -> QueryKeyObservation:
    many, queries, _ = product.query.shape
    mask = product.mask
    return QueryKeyObservation(
        source="multi_head_attention",
        shape=(many // heads, heads, queries, product.key.shape[-1]),
        tensors=FourAxes(product.query, product.key, None, product.query, weights),
        parts=(mask,),
        arrange=lambda tensors: _arrange(tensors, heads),
        arrange_returned=lambda weights: weights.unflatten(0, (-1, heads)),
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
    mask = mask.detach()
    return Mask.from_tensor(mask if len(mask) == 1 else mask.unflatten(0, (-1, heads)))
