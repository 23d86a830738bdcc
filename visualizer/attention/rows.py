"""A few rows of a map at once, cheap enough to be computed within a model's forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from visualizer.attention.call import AttentionCall
from visualizer.attention.picks import Pick
from visualizer.attention.scores import weights
from visualizer.attention.unobserved import unobserved

__all__ = ["head_runs", "runs", "weights_of_rows"]


def weights_of_rows(
    call: AttentionCall,
    queries: Tensor | Sequence[int],
    *,
    items: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """Return the weights of a few queries, without waiting for the device.

    Args:
        call: The call.
        queries: Indices of queries, from 0.
        items: Indices in the batch; None is all.
        heads: Indices of query heads; None is all.
    Returns:
        Shape `(item, head, query, key)`, float32 or float64, on the device of the call.
    """
    device = call.query.device
    with unobserved(device.type):
        if not isinstance(queries, Tensor):
            queries = torch.tensor(queries, dtype=torch.int64, device="cpu")
        queries = queries.to(device, torch.int64, non_blocking=True)
        batch, all_heads, _, keys = call.shape
        item_runs = [slice(0, batch)] if items is None else runs(items)
        picked = [slice(0, all_heads)] if heads is None else head_runs(heads, call.group)
        parts = [
            [weights(call, Pick(run, head, queries, slice(0, keys))) for head in picked]
            for run in item_runs
        ]
        lines = [line[0] if len(line) == 1 else torch.cat(line, 1) for line in parts]
        return lines[0] if len(lines) == 1 else torch.cat(lines)


def runs(indices: Sequence[int]) -> list[slice]:
    """Return indices as slices: one for each run of consecutive numbers."""
    result: list[slice] = []
    for index in indices:
        if result and index == result[-1].stop:
            result[-1] = slice(result[-1].start, index + 1)
        else:
            result.append(slice(index, index + 1))
    return result


def head_runs(heads: Sequence[int], group: int) -> list[slice]:
    """Return query heads as slices, each some heads of one key head, or all heads of several."""
    return [part for run in runs(heads) for part in _split(run.start, run.stop, group)]


def _split(start: int, stop: int, group: int) -> Iterator[slice]:
    while start < stop:
        if start % group == 0 and stop - start >= group:
            end = stop - stop % group
        else:
            end = min(stop, start - start % group + group)
        yield slice(start, end)
        start = end
