"""Lazy maps to test with: of weights, of queries and keys, and one that tells what is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")

from tests.analysis.weights import random_weights  # noqa: E402
from visualizer.attention import AttentionCall, AttentionMap, Mask, join_steps  # noqa: E402

__all__ = ["KINDS", "Watched", "call", "joined_map", "map_of_call"]


@dataclass
class Record:
    """A map of a call that nobody intercepted."""

    held: Any
    module_path: str | None = None
    layer: int | None = None
    call: int = 0
    step: int | None = None
    source: str = "sdpa"
    is_causal: bool | None = None
    confirmed: bool | None = True

    @property
    def shape(self) -> Any:
        return tuple(self.held.shape)

    def read(self) -> Any:
        return self.held


def call(
    batch: int = 1,
    heads: int = 3,
    tokens: int = 17,
    *,
    queries: int | None = None,
    key_heads: int | None = None,
    dtype: Any = torch.float32,
    seed: int = 0,
    **options: Any,
) -> AttentionCall:
    """Queries and keys at random, as an attention call."""
    random = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, queries or tokens, 8), (batch, key_heads or heads, tokens, 8)
    query, key = (torch.randn(shape, generator=random, dtype=dtype) for shape in shapes)
    return AttentionCall(query, key, 0.7, **options)


def map_of_call(*args: Any, **options: Any) -> AttentionMap:
    """The lazy map of such a call."""
    return AttentionMap(Record(call(*args, **options)))


class Watched(AttentionMap):
    """A map that can't be computed as a whole, and keeps the shape of each part that was taken."""

    __slots__ = ("taken",)

    def __init__(self, record: Any) -> None:
        super().__init__(record)
        self.taken: list[tuple[int, ...]] = []

    @classmethod
    def of(cls, *args: Any, **options: Any) -> Watched:
        return cls(Record(call(*args, **options)))

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        self.taken.append(part.shape)
        return part

    def weights(self, **options: Any) -> Any:
        raise AssertionError("the whole map is computed")

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("the whole map is computed")


def joined_map(batch: int = 1, *, rows: bool = False) -> AttentionMap:
    """The map of 17 tokens: 12 at once, the others one by one, in a window of 9."""
    seen = call(batch, 4, 12, key_heads=2, mask=Mask(causal=0, window=9))
    steps: list[Any] = [call(batch, 4, 9, queries=1, key_heads=2, seed=seed) for seed in range(5)]
    if rows:
        steps = [torch.from_numpy(AttentionMap(Record(step)).weights()) for step in steps]
    held = enumerate([seen, *steps])
    return join_steps([AttentionMap(Record(each, call=number)) for number, each in held])


def _of_weights(dtype: str) -> AttentionMap:
    weights = torch.from_numpy(random_weights(2, 3, 17, 17)).to(getattr(torch, dtype))
    return AttentionMap.from_weights(weights)


KINDS: dict[str, Any] = {
    "weights of float64": lambda: _of_weights("float64"),
    "weights of float32": lambda: _of_weights("float32"),
    "weights of bfloat16": lambda: _of_weights("bfloat16"),
    "a call": map_of_call,
    "a call with a batch": lambda: map_of_call(2),
    "a call of float64": lambda: map_of_call(2, dtype=torch.float64),
    "shared key heads": lambda: map_of_call(1, 4, key_heads=2),
    "causal": lambda: map_of_call(2, mask=Mask(causal=0)),
    "joined steps": joined_map,
    "joined steps, of which most are rows": lambda: joined_map(2, rows=True),
    "one token": lambda: map_of_call(1, 2, 1),
    "each token sees itself": lambda: map_of_call(
        1, 2, 17, mask=Mask(visible=torch.eye(17).bool()[None, None])
    ),
}
"""What makes maps of 17 tokens (or 1), by what is special about them."""
