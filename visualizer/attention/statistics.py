"""Statistics of maps, fused or piece by piece; tensors on the device of the map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visualizer.attention.call import AttentionCall
from visualizer.attention.fused import fused
from visualizer.attention.joined import Joined
from visualizer.attention.picks import Pick
from visualizer.attention.record import Source, device_of, dtype_of
from visualizer.attention.scores import scores
from visualizer.attention.stream import (
    BLOCK_BYTES,
    plan,
    stream,
    stream_logsumexp,
)

__all__ = [
    "column",
    "distance",
    "entropy",
    "is_causal",
    "logsumexp",
    "mass",
    "received",
    "top_keys",
]


def logsumexp(source: AttentionCall | Joined) -> Tensor:
    """Return the log-sum-exp of masked scores and sinks, shape `(batch, head, query)`.

    Args:
        source: A call, or several, joined.
    """
    if isinstance(source, AttentionCall):
        return _logsumexp(source)
    result = _empty(source, tuple(source.shape[:3]))
    for part in source.parts:
        assert isinstance(part.source, AttentionCall)
        result[:, :, part.queries] = _logsumexp(part.source)
    return result


def _logsumexp(call: AttentionCall) -> Tensor:
    quick = fused(call)
    if quick is None:
        return stream_logsumexp(call)
    result = quick.logsumexp
    if call.mask.hidden != -math.inf:
        result.masked_fill_(result == -math.inf, call.mask.hidden + math.log(call.shape[3]))
    if call.sinks is not None:
        result = torch.logaddexp(result, call.sinks.to(result.dtype).view(-1, 1))
    return result


def entropy(source: Source) -> Tensor:
    """Return the entropy of each row, scaled to the sum 1; shape `(batch, head, query)`, nats."""
    if isinstance(source, Joined) and len(source.parts) > 1:
        joined = _empty(source, tuple(source.shape[:3]))
        for queries, rows in source.by_rows():
            joined[:, :, queries] = entropy(rows)
        return joined
    quick = fused(source) if isinstance(source, AttentionCall) else None
    if quick is not None and isinstance(source, AttentionCall):
        if source.mask.hidden != -math.inf and source.sinks is None:
            alike = math.log(source.shape[3])
            quick.entropy.masked_fill_(quick.logsumexp == -math.inf, alike)
        return quick.entropy
    result = _empty(source, tuple(source.shape[:3]))
    for piece in stream(source):
        sums = piece.weights.sum(-1)
        spread = torch.special.entr(piece.weights).sum(-1)
        result[piece.item, piece.heads, piece.queries] = spread / sums + torch.log(sums)
    return result.clamp_(min=0)  # rounding can leave a little less


def received(source: Source) -> Tensor:
    """Return what each key gets, averaged over queries with weights; `(batch, head, key)`."""
    batch, heads, _, keys = source.shape
    total = _empty(source, (batch, heads, keys), torch.float64).zero_()
    count = _empty(source, (batch, heads, 1), torch.float64).zero_()
    for piece in stream(source):
        weights, counted = piece.weights, piece.weights.sum(-1) > 0
        if not counted.all():
            weights = weights.masked_fill(~counted.unsqueeze(-1), 0)
        total[piece.item, piece.heads, piece.keys] += weights.sum(-2)
        count[piece.item, piece.heads] += counted.sum(-1, keepdim=True)
    return (total / count).to(dtype_of(source))


def top_keys(source: Source, count: int) -> tuple[Tensor, Tensor]:
    """Return indices and weights of the largest, each `(batch, head, query, count)`."""
    shape = (*source.shape[:3], count)
    indices, weights = _empty(source, shape, torch.int64), _empty(source, shape)
    for piece in stream(source, at_least=count):
        place = piece.item, piece.heads, piece.queries
        weights[place], found = torch.topk(piece.weights, count, dim=-1)
        indices[place] = found.add_(piece.keys.start)
    return indices, weights


def mass(source: Source, keys: Tensor) -> Tensor:
    """Return the weight that goes to the given keys, shape `(batch, head, query)`.

    Args:
        source: A call or weights.
        keys: Sorted indices, int64.
    """
    result = _empty(source, tuple(source.shape[:3]))
    for piece in stream(source):
        inside = keys[(keys >= piece.keys.start) & (keys < piece.keys.stop)] - piece.keys.start
        chosen = piece.weights.index_select(-1, inside)
        nothing = piece.weights[..., 0] * 0  # or NaN, where a whole row is
        result[piece.item, piece.heads, piece.queries] = chosen.sum(-1) + nothing
    return result


def distance(source: Source, places: Tensor, prefix: int) -> Tensor:
    """Return the mean distance between queries and keys, shape `(batch, head)`.

    Args:
        source: A call or weights, with as many queries as keys.
        places: Where the tokens behind the prefix are, shape `(token, 2)`.
        prefix: How many tokens have no place.
    """
    total = _empty(source, tuple(source.shape[:2]), torch.float64).zero_()
    count = torch.zeros_like(total)
    for piece in stream(source):
        queries = slice(max(piece.queries.start, prefix), piece.queries.stop)
        keys = slice(max(piece.keys.start, prefix), piece.keys.stop)
        if queries.start >= queries.stop or keys.start >= keys.stop:
            continue
        weights = piece.weights[
            :, queries.start - piece.queries.start :, keys.start - piece.keys.start :
        ]
        here = places[queries.start - prefix : queries.stop - prefix]
        there = places[keys.start - prefix : keys.stop - prefix]
        apart = (here[:, None] - there[None]).square().sum(-1).sqrt()
        left = weights.sum(-1)
        each = (weights * apart).sum(-1) / left
        counted = left > 0
        total[piece.item, piece.heads] += each.masked_fill(~counted, 0).sum(-1)
        count[piece.item, piece.heads] += counted.sum(-1)
    return (total / count).to(dtype_of(source))


def is_causal(source: Source) -> bool:
    """Return whether no query gives weight to a key behind its own place.

    With fewer queries than keys, the queries are the last ones.
    """
    behind = source.shape[3] - source.shape[2]
    if isinstance(source, Joined):
        return all(
            _sees_nothing_later(part.source, behind + part.queries.start - part.keys.start)
            for part in source.parts
        )
    return _sees_nothing_later(source, behind)


def _sees_nothing_later(source: AttentionCall | Tensor, own: int) -> bool:
    """Return whether no query gives weight behind its own key, of which `own` is the first's."""
    queries, keys = source.shape[2:]
    if keys <= own + 1:
        return True
    if isinstance(source, AttentionCall) and queries > 1:
        if source.mask.is_causal(queries, queries + own):
            return True
        if source.mask.kind in ("none", "keys") and keys <= queries + own:
            return False
    for piece in stream(source):
        after = piece.queries.start + own + 1 - piece.keys.start
        if bool((piece.weights.triu(after) > 0).any()):
            return False
    return True


def column(call: AttentionCall, key: int, lse: Tensor) -> Tensor:
    """Return the weights of one key, shape `(batch, head, query)`.

    Args:
        call: The call; its mask has no bias.
        key: Index of the key.
        lse: What `logsumexp` returned.
    """
    result = _empty(call, tuple(call.shape[:3]))
    row_bytes = call.query.shape[3] * call.dtype.itemsize
    for pick in plan(call.shape, call.group, row_bytes, BLOCK_BYTES):
        one = Pick(pick.items, pick.heads, pick.queries, slice(key, key + 1))
        place = pick.items, pick.heads, pick.queries
        result[place] = torch.exp(scores(call, one).squeeze(-1) - lse[place])
    if call.mask.may_hide_rows() and call.sinks is None:
        empty = lse == -math.inf
        alike = call.empty_rows
        if call.mask.hidden != -math.inf:
            empty, alike = lse <= call.mask.hidden / 2, 1 / call.shape[3]
        result.masked_fill_(empty, alike)
    return result


def _empty(source: Source, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or dtype_of(source), device=device_of(source))
