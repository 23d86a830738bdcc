"""`torch.nn.functional.scaled_dot_product_attention`, and what its arguments mean."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from visualizer._intercept.compiled import Handed, repeat_heads, saw, unrepeat_heads
from visualizer._intercept.observation import FourAxes, Observation, QueryKeyObservation
from visualizer._intercept.observers import Sighting, call_inside, depth
from visualizer._intercept.telling import tell
from visualizer._intercept.tracing import NOT_SEEN, find_spot
from visualizer.attention import Mask

__all__ = ["as_added", "as_four_axes", "make_sdpa", "observe_sdpa"]


def make_sdpa(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what stands in for the function: the same, and open captures are told."""

    @functools.wraps(original)
    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        if torch.compiler.is_dynamo_compiling():
            return _compiled(original, query, key, value, *args, **kwargs)
        if depth.inside:
            return original(query, key, value, *args, **kwargs)
        output = call_inside(original, query, key, value, *args, **kwargs)
        if isinstance(output, Tensor):
            mask = args[0] if args else kwargs.get("attn_mask")
            seen, given = (query, key, value, output), (output, query, key, value, *args)
            tell(Sighting(observe_sdpa, given, kwargs, seen, (mask,)))
        return output

    return scaled_dot_product_attention


def _compiled(
    original: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Call the function, and hand the call over when the graph runs. Compiled, never run."""
    output = original(query, key, value, *args, **kwargs)
    spot = find_spot(_look)
    if spot != NOT_SEEN:
        # no default of ours is a float: Dynamo would take it for one that changes
        mask = args[0] if args else kwargs.get("attn_mask")
        dropout = args[1] if len(args) > 1 else kwargs.get("dropout_p", 0.0)
        is_causal = args[2] if len(args) > 2 else kwargs.get("is_causal", False)
        tensors: list[Tensor | None] = [query, key, value, output]
        is_grouped = kwargs.get("enable_gqa", False) and query.dim() == key.dim() == 4
        if is_grouped and key.device.type == "cpu":  # others repeat nothing
            groups = query.shape[-3] // key.shape[-3]
            tensors[1:3] = [repeat_heads(key, groups), repeat_heads(value, groups)]
        saw(spot, tensors, [mask], kwargs.get("scale"), None, dropout, is_causal)
    return output


def as_added(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """Return a boolean mask as the function makes it, to be added: so the graph has only one."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    nothing = torch.zeros_like(mask, dtype=query.dtype)
    return nothing.masked_fill(mask.logical_not(), float("-inf"))


def _look(handed: Handed) -> Sighting:
    query, key, value, output = handed.tensors
    if query is not None and query.dim() == 4:
        key, value = unrepeat_heads(key), unrepeat_heads(value)
    tensors, parts = (query, key, value, output), handed.parts
    options = {"dropout_p": handed.dropout, "is_causal": handed.is_causal, "scale": handed.scale}
    given = (output, query, key, value, *parts)
    return Sighting(observe_sdpa, given, options, tensors, parts, handed.module)


def observe_sdpa(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Observation:
    """Return what was seen of a call; shapes are broadcast as the function does it."""
    if query.is_nested:
        return Observation(source="sdpa", refusal="its inputs are nested (varlen) tensors")
    shape, axes = output.shape, max(query.dim(), key.dim(), value.dim())
    heads = shape[-3] if axes > 3 else 1
    batch = shape[0] if axes == 3 else math.prod(shape[:-3])
    is_plain = axes == 4 and shape[:2] == query.shape[:2] and shape[0] == len(key) == len(value)
    return QueryKeyObservation(
        source="sdpa",
        shape=(batch, heads, shape[-2], key.shape[-2]),
        tensors=FourAxes(query, key, value, output),
        parts=(attn_mask,),
        arrange=_no_change if is_plain else _arrange,
        arrange_returned=lambda tensor: as_four_axes(tensor, axes, tensor.shape[:-3]),
        make_mask=lambda: _mask(attn_mask, is_causal, axes, shape[:-3]),
        scale=1 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        dropout=dropout_p,
    )


def _no_change(tensors: FourAxes) -> FourAxes:
    return tensors


def _arrange(tensors: FourAxes) -> FourAxes:
    """Broadcast as the function does it; what is before the heads becomes the batch."""
    query, key, value, output = tensors[:4]
    assert value is not None
    axes = max(query.dim(), key.dim(), value.dim())
    leading = output.shape[:-3]
    query, key, value, output = (
        as_four_axes(tensor, axes, leading) for tensor in (query, key, value, output)
    )
    return FourAxes(query.expand(-1, output.shape[1], -1, -1), key, value, output)


def _mask(attn_mask: Tensor | None, is_causal: bool, axes: int, leading: tuple[int, ...]) -> Mask:
    causal = 0 if is_causal else None
    if attn_mask is None:
        return Mask(causal=causal)
    if axes == 3 and attn_mask.dim() == 3:
        attn_mask = attn_mask.unsqueeze(1)  # what is before the queries is the batch
    elif axes > 4 and attn_mask.dim() > 3:
        attn_mask = as_four_axes(attn_mask, axes, leading)
    return Mask.from_tensor(attn_mask.detach(), causal=causal)


def as_four_axes(tensor: Tensor, axes: int, leading: tuple[int, ...]) -> Tensor:
    """Return a tensor as `(batch, head, token, dim)`; `leading` is what the batch is made of."""
    if tensor.dim() == 4 and axes == 4:
        return tensor if tensor.shape[:1] == leading else tensor.expand(*leading, -1, -1, -1)
    if axes <= 3:
        return tensor.unsqueeze(1) if tensor.dim() == 3 else tensor[None, None]
    return tensor.expand(*leading, *tensor.shape[-3:]).flatten(0, -4)
