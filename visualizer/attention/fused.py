"""Log-sum-exp and entropy of all rows from one call of a fused kernel; on the CPU.

The entropy of a row is `lse_i - scale · q_i · o_i`, where `o` is what attention gives with the
keys as values. The kernel returns `o` and `lse` together, so both cost as much as one attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visualizer.attention.call import AttentionCall
from visualizer.attention.picks import Pick, take
from visualizer.attention.scores import logsumexp, rounds_products, weights

__all__ = ["Fused", "fused"]

_CHUNK_BYTES = 32 * 2**20
"""Of queries and keys that are handed to the kernel at a time, if that is more than one head."""

_TOLERANCE = 1e-3
"""Far above what float32 loses, far below what a misread argument does."""


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """Of each row; shape `(batch, head, query)`.

    Attributes:
        logsumexp: Of the scores, without sinks; -inf where no key is visible.
        entropy: In nats, over the keys; NaN where no key is visible.
    """

    logsumexp: Tensor
    entropy: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Keys that the kernel can go through in one call: all visible, or causal from the first."""

    keys: slice
    causal: bool


def fused(call: AttentionCall) -> Fused | None:
    """Return both for all rows, or None where the kernel can't, or does not what is expected."""
    parts = _parts(call)
    if parts is None:
        return None
    like = torch.empty(0, dtype=call.dtype, device=call.query.device)
    result = Fused(like.new_empty(call.shape[:3]), like.new_empty(call.shape[:3]))
    try:
        for items, key_heads in _chunks(call):
            heads = slice(key_heads.start * call.group, key_heads.stop * call.group)
            lse, product = _merged(call, items, key_heads, parts)
            result.logsumexp[items, heads] = lse
            spread = (lse - product).clamp_(min=0)
            result.entropy[items, heads] = spread.masked_fill_(lse == -math.inf, math.nan)
    except (AttributeError, RuntimeError, TypeError):  # another torch, another kernel
        return None
    return result if _agrees(call, result) else None


def _parts(call: AttentionCall) -> list[_Part] | None:
    mask, keys = call.mask, call.shape[3]
    plain = call.softcap is None and call.query.device.type == "cpu" and keys > 0
    known = mask.kind in ("none", "causal", "keys", "causal+keys") and mask.fill == -math.inf
    if not plain or not known or rounds_products(call.query.device):
        return None
    if mask.causal is None or mask.causal >= keys - 1:
        return [_Part(slice(0, keys), False)]
    if mask.causal < 0:
        return None
    before = [_Part(slice(0, mask.causal), False)] if mask.causal else []
    return [*before, _Part(slice(mask.causal, keys), True)]


def _chunks(call: AttentionCall) -> Iterator[tuple[slice, slice]]:
    """Yield items and key heads, so that their queries and keys in float32 take little."""
    batch, _, queries, keys = call.shape
    size = (queries + keys) * call.query.shape[3] * call.dtype.itemsize
    key_heads = call.key.shape[1]
    heads = 1 if call.group > 1 else min(key_heads, max(1, _CHUNK_BYTES // size))
    items = max(1, _CHUNK_BYTES // (size * heads * call.group)) if heads == key_heads else 1
    for item in range(0, batch, items):
        for head in range(0, key_heads, heads):
            yield (
                slice(item, min(item + items, batch)),
                slice(head, min(head + heads, key_heads)),
            )


def _merged(
    call: AttentionCall, items: slice, key_heads: slice, parts: list[_Part]
) -> tuple[Tensor, Tensor]:
    """Return log-sum-exp and `scale · q · o`, over all parts of the keys."""
    heads = slice(key_heads.start * call.group, key_heads.stop * call.group)
    count = items.stop - items.start
    query = call.query.expand(call.shape[0], -1, -1, -1)[items, heads]
    query = _dense(query.to(call.dtype))
    lse, product = None, None
    for part in parts:
        key = call.key.expand(call.shape[0], -1, -1, -1)[items, key_heads, part.keys]
        key = _dense(key.to(call.dtype)).expand(count, heads.stop - heads.start, -1, -1)
        more, output = _kernel(call, query, key, _bias(call, items, part), part)
        of_part = output.mul_(query).sum(-1).mul_(call.scale)
        if lse is None or product is None:
            lse, product = more, of_part
            continue
        both = torch.logaddexp(lse, more)
        product = product * torch.exp(lse - both) + of_part * torch.exp(more - both)
        lse = both
    assert lse is not None
    assert product is not None
    return lse, product


def _kernel(
    call: AttentionCall, query: Tensor, key: Tensor, bias: Tensor | None, part: _Part
) -> tuple[Tensor, Tensor]:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, lse = kernel(query, key, key, 0.0, part.causal, attn_mask=bias, scale=call.scale)
    if lse.shape != query.shape[:3]:
        raise RuntimeError("the kernel returns its log-sum-exp in another layout")
    if bias is None:
        return lse, output
    seen = (bias == 0).squeeze(1).cumsum(-1)  # (item, 1, key): visible keys up to here
    last = seen.shape[-1] - 1
    if part.causal:
        until = torch.arange(query.shape[2], dtype=torch.int64, device=query.device)
        seen = seen[..., until.clamp(max=last)]
    else:
        seen = seen[..., last:]
    return lse.masked_fill(seen == 0, -math.inf), output  # where it sees nothing, it returns 0


def _bias(call: AttentionCall, items: slice, part: _Part) -> Tensor | None:
    """Return hidden keys as the kernel takes them, shape `(item, 1, 1, key)`."""
    if call.mask.keys is None:
        return None
    visible = take(call.mask.keys, items, slice(0, 1), slice(0, 1), part.keys)
    bias = torch.zeros(visible.shape, dtype=call.dtype, device=visible.device)
    bias = bias.masked_fill_(~visible, -math.inf)
    return bias.expand(items.stop - items.start, 1, 1, part.keys.stop - part.keys.start)


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _agrees(call: AttentionCall, result: Fused) -> bool:
    """Hold a few rows against another way to compute them."""
    batch, heads, queries, keys = call.shape
    rows = torch.tensor(
        sorted({0, queries // 2, queries - 1}), dtype=torch.int64, device=call.query.device
    )
    mask = replace(call.mask, hidden=-math.inf)
    plain = AttentionCall(call.query, call.key, call.scale, mask, empty_rows=math.nan)
    for item in {0, batch - 1}:
        for head in {0, heads - 1}:
            pick = Pick(slice(item, item + 1), slice(head, head + 1), rows, slice(0, keys))
            lse = result.logsumexp[item, head, rows]
            if not torch.allclose(lse, logsumexp(plain, pick)[0, 0], 1e-5, _TOLERANCE, True):
                return False
            spread = torch.special.entr(weights(plain, pick)[0, 0]).sum(-1)
            entropy = result.entropy[item, head, rows]
            if not torch.allclose(entropy, spread, 1e-5, _TOLERANCE, True):
                return False
    return True
