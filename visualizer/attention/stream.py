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


def plan(shape: Shape, group: int, row_bytes: int, max_bytes: int) -> Iterator[Pick]:
    """Cut a map into pieces of one item.

    Args:
        shape: Of the map.
        group: How many heads share a key head; pieces stay within one, or take whole ones.
        row_bytes: What one query of one head takes.
        max_bytes: A piece takes no more, if it has more than one query.
    """
    batch, heads, queries, keys = shape
    rows = max(1, max_bytes // row_bytes)
    together, step = min(rows, group), 1
    if rows >= group:
        together, step = group, min(queries, rows // group)
    if rows >= group * queries:
        together = rows // (group * queries) * group
    for item in range(batch):
        for first in range(0, heads, together):
            for run in head_runs(range(first, min(first + together, heads)), group):
                for start in range(0, queries, step):
                    part = slice(start, min(start + step, queries))
                    yield Pick(slice(item, item + 1), run, part, slice(0, keys))


def stream(source: Source, *, at_least: int = 1) -> Iterator[Piece]:
    """Compute a map, piece by piece.

    Args:
        source: A call, weights, or joined ones.
        at_least: How many keys a piece has; those at the ends that no query sees may be missing.
    """
    if isinstance(source, Tensor):
        yield from _stream_tensor(source)
        return
    if isinstance(source, Joined):
        for part in source.parts:
            for piece in stream(part.source):
                yield _placed(piece, part, source, at_least)
        return
    row_bytes = source.shape[3] * source.dtype.itemsize
    buffers: list[Tensor] = []
    for pick in plan(source.shape, source.group, row_bytes, BLOCK_BYTES):
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


def _stream_tensor(tensor: Tensor) -> Iterator[Piece]:
    batch, heads, queries, keys = tensor.shape
    dtype = dtype_of(tensor)
    for pick in plan((batch, heads, queries, keys), 1, keys * dtype.itemsize, BLOCK_BYTES):
        values = tensor[pick.items.start, pick.heads, pick.queries].to(dtype)
        yield Piece(pick.items.start, pick.heads, _queries(pick), pick.keys, values)


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
