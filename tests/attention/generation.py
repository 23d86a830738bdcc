"""Steps of a generation, as caches hand them to attention, and the map of all of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.attention import reference
from visualizer.attention import AttentionCall, AttentionMap, Mask

__all__ = ["LAYOUTS", "Generation", "numbered"]


def numbered(held: Any, number: int, **facts: Any) -> AttentionMap:
    """Return the map of a step."""
    return AttentionMap(reference.Record(held, **{"call": number, "step": number, **facts}))


class Generation:
    """Queries and keys of some tokens, and the maps of the steps in which they come.

    Args:
        sizes: How many queries each step has; the first is the prompt.
        layout: "dynamic", "static", "sliding" or "static sliding".
        window: How many keys a query sees at most, its own included; None is all.
        past: How many tokens came before.
        length: Of a static cache.
        hidden: How many tokens of the second item are padding, on the left.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        layout: str = "dynamic",
        *,
        window: int | None = None,
        past: int = 0,
        length: int = 24,
        hidden: int = 0,
        heads: int = 4,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        tokens = past + sum(sizes)
        self.sizes, self.layout, self.past, self.length = sizes, layout, past, length
        self.window = window or tokens
        self.query = reference.normal(2, heads, tokens, 8, seed=1, dtype=dtype)
        self.key = reference.normal(2, 2, tokens, 8, seed=2, dtype=dtype)
        self.seen = torch.ones(2, 1, 1, tokens, dtype=torch.bool)
        self.seen[1, ..., :hidden] = False

    def whole(self) -> Any:
        """Return the map of all tokens, with the softmax written out, in float64."""
        query, key = self.query.double().numpy(), self.key.double().numpy()
        batch, heads, tokens, _ = query.shape
        result = np.zeros((batch, heads, tokens, tokens))
        for item, head, i in np.ndindex(batch, heads, tokens):
            first = max(0, i - self.window + 1)
            keys = [j for j in range(first, i + 1) if self.seen[item, 0, 0, j]]
            if keys:
                row = key[item, head // (heads // 2)]
                powers = np.exp([0.6 * query[item, head, i] @ row[j] for j in keys])
                result[item, head, i, keys] = powers / powers.sum()
        return result[:, :, self.past :]

    def calls(self) -> list[AttentionCall]:
        """Return what attention is given at each step."""
        found, before = [], self.past
        for size in self.sizes:
            places = self.places(before, size)
            key, seen = self._keys(places)
            own = torch.arange(before, before + size).unsqueeze(-1)
            at = torch.tensor(places)
            visible = (at <= own) & (at > own - self.window) & (at >= 0) & seen
            mask = Mask.from_tensor(visible)
            query = self.query[:, :, before : before + size]
            found.append(AttentionCall(query, key, 0.6, mask))
            before += size
        return found

    def maps(self, form: str = "calls", **facts: Any) -> list[AttentionMap]:
        """Return the steps' maps.

        Args:
            form: "calls", "rows", or "both": the prompt as a call, the others as rows.
            facts: Of all their records.
        """
        found = []
        for number, call in enumerate(self.calls()):
            held: Any = call
            if form == "rows" or (form == "both" and number):
                held = reference.map_of(call).weights()
                held = torch.from_numpy(held)
            found.append(numbered(held, number, **facts))
        return found

    def places(self, before: int, size: int) -> list[int]:
        """Return which token each key of a step is; -1 for places that are not filled."""
        after = before + size
        if self.layout == "dynamic":
            return list(range(after))
        if self.layout == "static":
            return [place if place < after else -1 for place in range(self.length)]
        if self.layout == "sliding":
            return list(range(max(0, before - self.window + 1), after))
        if before >= self.window:  # it is full: all but the oldest, and the new ones
            return list(range(before - self.window + 1, after))
        if after > self.window:
            return list(range(after))
        return [place if place < after else -1 for place in range(self.window)]

    def _keys(self, places: list[int]) -> tuple[Tensor, Tensor]:
        at = torch.tensor(places).clamp(min=0)
        key, seen = self.key[:, :, at], self.seen[..., at]
        empty = torch.tensor(places) < 0
        key[:, :, empty] = 100.0  # what a place had before must not matter
        return key, seen & ~empty


LAYOUTS = {
    "dynamic": Generation([5, 1, 1, 1, 1]),
    "in chunks": Generation([4, 4, 3, 1, 1, 2]),
    "one token at first": Generation([1, 1, 1, 1]),
    "padded": Generation([5, 1, 1, 1], hidden=3),
    "static": Generation([5, 1, 1, 1], "static"),
    "static, padded": Generation([5, 1, 1, 1], "static", hidden=2),
    "static, in chunks": Generation([4, 4, 3, 1, 1], "static"),
    "static, one token at first": Generation([1, 1, 1], "static"),
    "static, filled": Generation([5, 1, 1, 1], "static", length=8),
    "sliding": Generation([7, 1, 1, 1], "sliding", window=4),
    "sliding, short prompt": Generation([2, 1, 1, 1, 1, 1, 1], "sliding", window=4),
    "sliding, in chunks": Generation([3, 3, 3, 1, 1, 2, 1], "sliding", window=4),
    "sliding, padded": Generation([7, 1, 1, 1], "sliding", window=4, hidden=2),
    "sliding, never full": Generation([3, 1, 1], "sliding", window=9),
    "static sliding": Generation([7, 1, 1, 1], "static sliding", window=4),
    "static sliding, short prompt": Generation([2] + [1] * 6, "static sliding", window=4),
    "static sliding, full prompt": Generation([4, 1, 1], "static sliding", window=4),
    "static sliding, in chunks": Generation([3, 3, 3, 1, 1, 2], "static sliding", window=4),
    "static sliding, never full": Generation([3, 1, 1], "static sliding", window=9),
    "float64": Generation([5, 1, 1], dtype=torch.float64),
}
"""Generations of every kind of cache."""
