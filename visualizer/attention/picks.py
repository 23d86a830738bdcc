"""A part of a map: some items, heads, queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pick", "Shape", "positions", "take"]

Shape = tuple[int, int, int, int]
"""Sizes of batch, head, query, key."""


@dataclass(frozen=True, slots=True, eq=False)
class Pick:
    """A part of a map. Slices have a start and a stop, and the step 1.

    Attributes:
        items: Of the batch.
        heads: Query heads: some of one key head, or all of several.
        queries: A slice, or int64 indices, shape `(query,)`, on the device of the map.
        keys: The keys.
    """

    items: slice
    heads: slice
    queries: slice | Tensor
    keys: slice

    def __len__(self) -> int:
        """Return the number of queries."""
        if isinstance(self.queries, slice):
            return int(self.queries.stop - self.queries.start)
        return int(self.queries.shape[0])


def take(tensor: Tensor, *picks: slice | Tensor) -> Tensor:
    """Return the part of a tensor, an axis a pick; axes of size 1 stay, since they broadcast."""
    for axis, pick in enumerate(picks):
        if tensor.shape[axis] == 1:
            continue
        if isinstance(pick, Tensor):
            tensor = tensor.index_select(axis, pick)
        elif pick.stop - pick.start != tensor.shape[axis]:
            tensor = tensor.narrow(axis, pick.start, pick.stop - pick.start)
    return tensor


def positions(pick: slice | Tensor, device: torch.device) -> Tensor:
    """Return the indices that a pick stands for, int64."""
    if isinstance(pick, Tensor):
        return pick
    return torch.arange(pick.start, pick.stop, dtype=torch.int64, device=device)
