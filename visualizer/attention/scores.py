"""Scores and weights of a part of a map, in float32 or float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visualizer.attention.call import AttentionCall
from visualizer.attention.picks import Pick, take

__all__ = ["logsumexp", "multiply", "rounds_products", "scores", "weights"]

_CONVERTED_BYTES = 32 * 2**20
"""So much of the keys is converted to the type of the computation at a time."""


def scores(call: AttentionCall, pick: Pick, out: Tensor | None = None) -> Tensor:
    """Return masked scores, shape `(item, head, query, key)`.

    Args:
        call: The call.
        pick: Which part.
        out: Contiguous, of that shape, to be written to.
    """
    items, heads = (pick.items.stop - pick.items.start, pick.heads.stop - pick.heads.start)
    shape = (items, heads, len(pick), pick.keys.stop - pick.keys.start)
    if out is None:
        out = torch.empty(shape, dtype=call.dtype, device=call.query.device)
    query = take(call.query, pick.items, pick.heads, pick.queries)
    key_heads = slice(pick.heads.start // call.group, (pick.heads.stop - 1) // call.group + 1)
    key = take(call.key, pick.items, key_heads, pick.keys)
    multiply(query, key, call.scale, out)
    if call.softcap is not None:
        out.div_(call.softcap).tanh_().mul_(call.softcap)
    call.mask.apply_(out, pick)
    return out


def weights(
    call: AttentionCall, pick: Pick, out: Tensor | None = None, scratch: Tensor | None = None
) -> Tensor:
    """Return weights, shape `(item, head, query, key)`.

    Args:
        call: The call.
        pick: Which part. Its keys must be all that its queries see, as from `Mask.reach`.
        out: Contiguous, of that shape, to be written to.
        scratch: Likewise; holds the scores.
    """
    before = scores(call, pick, scratch)
    result = torch.softmax(before, -1) if out is None else torch.softmax(before, -1, out=out)
    if call.sinks is not None:
        kept = torch.sigmoid(torch.logsumexp(before, -1, keepdim=True) - _sinks(call, pick))
        result.mul_(kept)
    if call.mask.may_hide_rows():
        empty = before.amax(-1, keepdim=True) == -math.inf
        if empty.device.type != "cpu" or empty.any():  # elsewhere, to ask would mean to wait
            result.masked_fill_(empty, _empty_weight(call))
    return result


def logsumexp(call: AttentionCall, pick: Pick, scratch: Tensor | None = None) -> Tensor:
    """Return the log-sum-exp of masked scores and sinks, shape `(item, head, query)`."""
    result = torch.logsumexp(scores(call, pick, scratch), -1)
    if call.mask.fill != call.mask.hidden:
        alike = call.mask.hidden + math.log(call.shape[3])
        result.masked_fill_(result == -math.inf, alike)
    if call.sinks is not None:
        result = torch.logaddexp(result, _sinks(call, pick).squeeze(-1))
    return result


def _empty_weight(call: AttentionCall) -> float:
    if call.sinks is not None:
        return 0.0
    return call.empty_rows if call.mask.fill == call.mask.hidden else 1 / call.shape[3]


def _sinks(call: AttentionCall, pick: Pick) -> Tensor:
    assert call.sinks is not None
    return take(call.sinks, pick.heads).to(call.dtype).view(-1, 1, 1)


def multiply(query: Tensor, key: Tensor, scale: float, out: Tensor) -> None:
    """Write `scale · query · keyᵀ` to `out`; a key head serves as many queries as there are.

    Args:
        query: Shape `(item, head, query, dim)`.
        key: Shape `(item, key_head, key, dim)`.
        scale: What the products are multiplied with.
        out: Contiguous, shape `(item, head, query, key)`.
    """
    exact = torch.float64 if rounds_products(out.device) else out.dtype
    key_heads, count = key.shape[1], key.shape[2]
    rows = out.shape[1] // key_heads * out.shape[2]
    scaled = query.to(exact).mul(scale).reshape(query.shape[0], key_heads, rows, query.shape[3])
    result = out.view(out.shape[0], key_heads, rows, count)
    for item in range(out.shape[0]):
        left = scaled[item if query.shape[0] > 1 else 0]
        right = key[item if key.shape[0] > 1 else 0]
        if right.dtype == exact == out.dtype:
            torch.bmm(left, right.mT, out=result[item])
        else:
            _multiply_converted(left, right, result[item])


def _multiply_converted(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write `left · rightᵀ` to `out`, with `right` converted to the type of `left` bit by bit."""
    size = max(1, right.shape[0] * right.shape[2] * left.element_size())
    step = max(1, _CONVERTED_BYTES // size)
    for start in range(0, right.shape[1], step):
        part = right[:, start : start + step].to(left.dtype)
        out[..., start : start + step] = torch.bmm(left, part.mT)


def rounds_products(device: torch.device) -> bool:
    """Return whether float32 products are rounded to TensorFloat-32 or bfloat16, as users allow."""
    try:
        if device.type == "cuda":
            return bool(torch.backends.cuda.matmul.allow_tf32)
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # settings of the old and the new kind are mixed
        return True
