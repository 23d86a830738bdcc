"""Going through a map in pieces, so that it never is in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visualizer.attention.call import AttentionCall
from visualizer.attention.joined import Joined, Part
from visualizer.attention.picks import Pick, Shape
from visualizer.attention.record import Source, dtype_of
from visualizer.attention.rows import head_runs
from visualizer.attention.scores import logsumexp, weights

__all__ = ["BLOCK_BYTES", "Block", "Piece", "plan", "stream", "stream_logsumexp"]

BLOCK_BYTES = 16 * 2**20
"""Bytes of a piece. Scores and weights of one piece are held at a time: two times as much."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some rows of a map, for whoever goes through it.

    Attributes:
        item: Index in the batch.
        queries: Which queries.
        weights: Shape `(head, query, key)`.
    """

    item: int
    queries: slice
    weights: NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Weights of a piece of a map.

    Attributes:
        item: Index in the batch.
        heads: Which heads.
        queries: Which queries.
        keys: Which keys; the weights of all others are 0.
        weights: Shape `(head, query, key)`; good until the next piece is taken, not to be changed.
    """

    item: int
    heads: slice
    queries: slice
    keys: slice
    weights: Tensor


def plan(
    shape: Shape,
    group: int,
    row_bytes: int,
    max_bytes: int,
    *,
    items: slice | None = None,
    queries: slice | None = None,
) -> Iterator[Pick]:
    """Cut a map into pieces of one item.

    Args:
        shape: Of the map.
        group: How many heads share a key head; pieces stay within one, or take whole ones.
        row_bytes: What one query of one head takes.
        max_bytes: A piece takes no more, if it has more than one query.
        items: Of the batch; None is all.
        queries: Which; None is all.
    """
    batch, heads, count, keys = shape
    first, last = (0, count) if queries is None else (queries.start, queries.stop)
    count = last - first
    rows = max(1, max_bytes // row_bytes)
    together, step = min(rows, group), 1
    if rows >= group:
        together, step = group, max(1, min(count, rows // group))
    if rows >= group * count:
        together = rows // max(1, group * count) * group
    for item in range(batch)[slice(None) if items is None else items]:
        for head in range(0, heads, together):
            for run in head_runs(range(head, min(head + together, heads)), group):
                for start in range(first, last, step):
                    part = slice(start, min(start + step, last))
                    yield Pick(slice(item, item + 1), run, part, slice(0, keys))


def stream(
    source: Source,
    *,
    at_least: int = 1,
    items: slice | None = None,
    queries: slice | None = None,
) -> Iterator[Piece]:
    """Compute a map, piece by piece.

    Args:
        source: A call, weights, or joined ones.
        at_least: How many keys a piece has; those at the ends that no query sees may be missing.
        items: Of the batch; None is all.
        queries: Which; None is all.
    """
    if isinstance(source, Tensor):
        yield from _stream_tensor(source, items, queries)
        return
    if isinstance(source, Joined):
        for part in source.parts:
            its_queries = _its_queries(part, queries)
            if its_queries.start < its_queries.stop:
                for piece in stream(part.source, items=items, queries=its_queries):
                    yield _placed(piece, part, source, at_least)
        return
    row_bytes = source.shape[3] * source.dtype.itemsize
    buffers: list[Tensor] = []
    picks = plan(source.shape, source.group, row_bytes, BLOCK_BYTES, items=items, queries=queries)
    for pick in picks:
        if not buffers:  # the first piece is the largest
            size = (pick.heads.stop - pick.heads.start) * len(pick) * source.shape[3]
            like = torch.empty(0, dtype=source.dtype, device=source.query.device)
            buffers = [like.new_empty(size), like.new_empty(size)]
        keys = source.mask.reach(pick, source.shape)
        keys = keys if keys.stop - keys.start >= at_least else pick.keys
        seen = Pick(pick.items, pick.heads, pick.queries, keys)
        shape = (1, pick.heads.stop - pick.heads.start, len(pick), keys.stop - keys.start)
        out, scratch = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
        values = weights(source, seen, out, scratch)[0]
        yield Piece(pick.items.start, pick.heads, _queries(pick), keys, values)


def stream_logsumexp(call: AttentionCall) -> Tensor:
    """Return the log-sum-exp of all rows, shape `(batch, head, query)`, piece by piece."""
    result = torch.empty(call.shape[:3], dtype=call.dtype, device=call.query.device)
    row_bytes = call.shape[3] * call.dtype.itemsize
    for pick in plan(call.shape, call.group, row_bytes, BLOCK_BYTES):
        keys = call.mask.reach(pick, call.shape)
        seen = Pick(pick.items, pick.heads, pick.queries, keys)
        result[pick.items, pick.heads, pick.queries] = logsumexp(call, seen)
    return result


def _stream_tensor(tensor: Tensor, items: slice | None, queries: slice | None) -> Iterator[Piece]:
    batch, heads, count, keys = tensor.shape
    dtype, shape = dtype_of(tensor), (batch, heads, count, keys)
    row_bytes = keys * dtype.itemsize
    for pick in plan(shape, 1, row_bytes, BLOCK_BYTES, items=items, queries=queries):
        values = tensor[pick.items.start, pick.heads, pick.queries].to(dtype)
        yield Piece(pick.items.start, pick.heads, _queries(pick), pick.keys, values)


def _its_queries(part: Part, queries: slice | None) -> slice:
    """Return which of the queries of the whole are a part's, counted from its first."""
    first, last = part.queries.start, part.queries.stop
    if queries is None:
        return slice(0, last - first)
    return slice(max(0, queries.start - first), min(last, queries.stop) - first)


def _placed(piece: Piece, part: Part, whole: Joined, at_least: int) -> Piece:
    """Return a piece of a part as one of the whole, with so many keys at least."""
    start = part.keys.start + piece.keys.start
    stop = min(part.keys.start + piece.keys.stop, part.keys.stop)
    weights = piece.weights[..., : max(0, stop - start)].to(whole.device, whole.dtype)
    keys = slice(start, stop)
    if stop - start < at_least:
        low = max(0, min(start, whole.keys - at_least))
        keys = slice(low, max(stop, low + at_least))
        wider = weights.new_zeros((*weights.shape[:-1], keys.stop - low))
        wider[..., start - low : start - low + weights.shape[-1]] = weights
        weights = wider
    before = part.queries.start
    queries = slice(before + piece.queries.start, before + piece.queries.stop)
    return Piece(piece.item, piece.heads, queries, keys, weights)


def _queries(pick: Pick) -> slice:
    assert isinstance(pick.queries, slice)
    return pick.queries
