"""One map of which several calls have the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visualizer.attention.call import AttentionCall
from visualizer.attention.picks import Shape

__all__ = ["Joined", "Part"]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some rows of a joined map.

    Attributes:
        source: A call, or weights.
        queries: Which rows of the whole these are.
        keys: Which keys of the whole the source's first ones are; the weights of all others are
            0. The source may have more keys behind them, as places of a cache that are not filled.
    """

    source: AttentionCall | Tensor
    queries: slice
    keys: slice

    @property
    def is_cut(self) -> bool:
        """Whether the source has more keys."""
        return bool(self.source.shape[3] != self.keys.stop - self.keys.start)


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Rows that follow each other, each with some of the keys.

    Attributes:
        parts: In the order of their queries, without gaps, alike in batch and heads.
        keys: How many keys the whole has.
    """

    parts: tuple[Part, ...]
    keys: int

    @property
    def shape(self) -> Shape:
        """Sizes of batch, head, query, key."""
        batch, heads = self.parts[0].source.shape[:2]
        return batch, heads, self.parts[-1].queries.stop, self.keys

    @property
    def dtype(self) -> torch.dtype:
        """What weights are computed in: float64 where a part's are, else float32."""
        exact = any(part.source.dtype == torch.float64 for part in self.parts)
        return torch.float64 if exact else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the first part is computed; other parts are brought there."""
        source = self.parts[0].source
        return source.query.device if isinstance(source, AttentionCall) else source.device

    @property
    def has_scores(self) -> bool:
        """Whether all parts are calls."""
        return all(isinstance(part.source, AttentionCall) for part in self.parts)

    def by_rows(self) -> Iterator[tuple[slice, AttentionCall | Tensor | Joined]]:
        """Yield queries and the source of their rows: the part's own, where it has no more keys."""
        for part in self.parts:
            rows = slice(0, part.queries.stop - part.queries.start)
            alone = Joined((replace(part, queries=rows),), self.keys)
            yield part.queries, alone if part.is_cut else part.source
