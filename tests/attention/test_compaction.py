"""Dense masks in compact form hide the very same keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.attention.reference import map_of, normal, visible_keys
from visualizer.attention import AttentionCall, Mask, compaction
from visualizer.errors import OutOfRangeError, ShapeError

LOWEST = torch.finfo(torch.float32).min


def padded(left: int, right: int, size: int = 8) -> Tensor:
    keys = torch.ones(1, 1, 1, size, dtype=torch.bool)
    keys[..., :left] = False
    keys[..., size - right :] = False
    return keys


def causal(queries: int = 8, keys: int = 8, offset: int = 0) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(offset)[None, None]


def packed(*lengths: int) -> Tensor:
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return (document[:, None] == document)[None, None]


COMPACT: dict[str, tuple[Tensor, str]] = {
    "all": (torch.ones(2, 1, 8, 8, dtype=torch.bool), "none"),
    "nothing": (torch.zeros(1, 1, 8, 8, dtype=torch.bool), "keys"),
    "causal": (causal(), "causal"),
    "causal, the last queries": (causal(3, 8, 5), "causal"),
    "causal, more queries": (causal(8, 3, -2), "causal"),
    "one query": (padded(2, 1), "keys"),
    "padding for all queries": (torch.cat([padded(3, 0), padded(0, 2)]).expand(2, 1, 8, 8), "keys"),
    "padding in memory": (padded(0, 2).expand(1, 4, 8, 8).contiguous(), "keys"),
    "causal, left padding": (torch.cat([padded(3, 0), padded(0, 0)]) & causal(), "causal+keys"),
    "causal, right padding": (torch.cat([padded(0, 4), padded(0, 1)]) & causal(), "causal+keys"),
    "window": (causal() & ~causal(offset=-3), "spans"),
    "window, left padding": (causal() & ~causal(offset=-3) & padded(2, 0), "spans"),
    "both sides": (causal(offset=2) & ~causal(offset=-3), "spans"),
    "packed": (packed(3, 1, 4), "spans"),
    "packed, causal": (packed(3, 1, 4) & causal(), "spans"),
    "packed, padding": (packed(3, 1, 4) & padded(0, 2), "spans"),
    "holes": (torch.tensor([1, 0, 1, 1, 0, 1, 1, 1]).bool() & packed(3, 5), "spans+keys"),
    "heads differ": (torch.cat([causal(), causal(offset=1)], 1), "spans"),
    "heads and items": (torch.cat([causal(), packed(2, 6)]).repeat(1, 3, 1, 1), "spans"),
}


def seen(mask: Mask, shape: tuple[int, ...]) -> Any:
    return visible_keys(mask, shape)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(COMPACT))
def test_compact_and_equal(name: str, dtype: torch.dtype) -> None:
    dense, kind = COMPACT[name]
    tensor, hidden = dense, -math.inf
    if dtype != torch.bool:
        hidden = torch.finfo(dtype).min if dtype == torch.bfloat16 else -math.inf
        tensor = torch.zeros(dense.shape, dtype=dtype).masked_fill(~dense, hidden)
    mask = Mask.from_tensor(tensor)
    assert mask.kind == kind
    assert mask.hidden in (hidden, -math.inf) if kind == "none" else mask.hidden == hidden
    shape = tuple(dense.shape)
    np.testing.assert_array_equal(seen(mask, shape), dense.numpy())
    assert all(part.numel() < dense.numel() or dense.shape[2] == 1 for part in mask.tensors())


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """Random, in blocks, by rows, by keys: all sorts of masks, small ones."""
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    queries, keys = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    seed = draw(st.integers(0, 10**6))
    share = draw(st.sampled_from([-3.0, -1.0, 0.0, 1.0]))
    dense = normal(batch, heads, queries, keys, seed=seed) > share
    for shape in ((batch, 1, 1, keys), (1, 1, queries, keys), (batch, 1, queries, 1)):
        if draw(st.booleans()):
            dense &= normal(*shape, seed=seed + 1) > -1
    if draw(st.booleans()):
        dense &= torch.ones(queries, keys, dtype=torch.bool).tril(draw(st.integers(-1, 5)))
    if draw(st.booleans()):
        dense = dense.cummax(-1).values  # spans that begin anywhere
    return dense


@settings(max_examples=200, deadline=None)
@given(masks(), st.sampled_from([None, 0, 1]), st.booleans())
def test_any_mask_stays_what_it_is(dense: Tensor, offset: int | None, small: bool) -> None:
    before = compaction._BLOCK_BYTES
    compaction._BLOCK_BYTES = 7 if small else before
    try:
        mask = Mask.from_tensor(dense, causal=offset)
    finally:
        compaction._BLOCK_BYTES = before
    expected = dense if offset is None else dense & torch.ones(dense.shape[2:]).tril(offset).bool()
    np.testing.assert_array_equal(seen(mask, tuple(dense.shape)), expected.numpy())


@settings(max_examples=60, deadline=None)
@given(masks(), st.sampled_from([-1e4, -65504.0, -1e9, -1e30, LOWEST, -math.inf]))
def test_weights_are_those_with_the_mask_added(dense: Tensor, hidden: float) -> None:
    """Also in rows that see no key, where what is added may leave the scores, or swallow them."""
    batch, heads, queries, keys = dense.shape
    query, key = normal(batch, heads, queries, 4, seed=1), normal(batch, heads, keys, 4, seed=2)
    added = torch.zeros(dense.shape).masked_fill(~dense, hidden)
    found = map_of(AttentionCall(query, key, 1.0, Mask.from_tensor(added))).weights()
    expected = torch.softmax(query @ key.mT + added, -1).nan_to_num(0)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_values_that_are_more_than_a_mask_stay() -> None:
    for bias in (normal(4, 4), torch.tensor([[0.0, -math.inf], [-1e9, 0.0]]), torch.ones(2, 2)):
        mask = Mask.from_tensor(bias)
        assert mask.kind == "bias"
        assert mask.bias is not None
        assert mask.bias.data_ptr() == bias.data_ptr()
    random = normal(6, 6) > 0
    mask = Mask.from_tensor(random, causal=0)
    assert mask.kind == "causal+visible"
    assert mask.visible is not None
    assert mask.visible.data_ptr() == random.data_ptr()


def test_zeros_are_no_mask() -> None:
    assert Mask.from_tensor(torch.zeros(5, 5)).kind == "none"
    assert Mask.from_tensor(torch.zeros(5, 5), causal=0).kind == "causal"


def test_expanded_masks_take_no_more_than_one() -> None:
    bias = normal(1, 1, 5, 5).expand(3, 4, 5, 5)
    mask = Mask.from_tensor(bias)
    assert mask.bias is not None
    assert mask.bias.shape == (1, 1, 5, 5)


@pytest.fixture()
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows by one whenever a mask is really looked at."""
    looks: list[Any] = []
    real = compaction._compact
    monkeypatch.setattr(compaction, "_compact", lambda *a: looks.append(1) or real(*a))
    return looks


def test_a_mask_that_layers_share_is_looked_at_once(counted: list[Any]) -> None:
    dense = causal(64, 64).clone()
    first = Mask.from_tensor(dense)
    assert Mask.from_tensor(dense) is first
    assert Mask.from_tensor(dense[:, :, :, :]) is first  # a view that a layer makes
    assert Mask.from_tensor(dense[..., :32]) is not first
    assert Mask.from_tensor(dense, causal=0) is not first
    random = normal(9, 9) > 0
    assert Mask.from_tensor(random).visible is not None
    assert Mask.from_tensor(random).visible is not None
    assert len(counted) == 4


def test_a_mask_that_was_written_to_is_looked_at_again() -> None:
    dense = causal(64, 64).clone()
    assert Mask.from_tensor(dense).kind == "causal"
    dense[..., 3] = False
    assert Mask.from_tensor(dense).kind == "causal+keys"


def test_memory_that_is_used_again_is_looked_at_again(counted: list[Any]) -> None:
    for offset in range(20):
        dense = causal(64, 64, offset).clone()
        assert Mask.from_tensor(dense).causal == offset
        del dense
    assert len(counted) == 20
    assert len(compaction._memory) <= 8


def test_inference_tensors_are_not_remembered() -> None:
    with torch.inference_mode():
        dense = causal(16, 16).clone()
        assert Mask.from_tensor(dense).kind == "causal"
        dense[..., 3] = False
        mask = Mask.from_tensor(dense)
    assert mask.kind == "causal+keys"
    assert not any(part.is_inference() for part in mask.tensors())


def test_the_kind_in_words() -> None:
    assert Mask().kind == "none"
    assert Mask(causal=1, window=3, keys=padded(1, 1)).kind == "causal+window+keys"


def test_is_causal_from_the_compact_parts() -> None:
    assert Mask(causal=0).is_causal(8, 8)
    assert Mask(causal=3).is_causal(5, 8)
    assert not Mask(causal=3).is_causal(8, 8)
    assert Mask().is_causal(1, 8)
    assert not Mask().is_causal(2, 8)
    assert Mask.from_tensor(packed(3, 5) & causal()).is_causal(8, 8)
    assert not Mask.from_tensor(packed(3, 5)).is_causal(8, 8)


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ({"causal": True}, OutOfRangeError),
        ({"window": 3}, OutOfRangeError),
        ({"causal": 0, "window": 0}, OutOfRangeError),
        ({"visible": torch.ones(3, 3)}, ShapeError),
        ({"keys": torch.ones(3)}, ShapeError),
        ({"bias": torch.ones(3, 3, dtype=torch.long)}, ShapeError),
        ({"bias": torch.ones(1, 1, 1, 3, 3)}, ShapeError),
    ],
    ids=str,
)
def test_what_is_no_mask(parts: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Mask(**parts)


@pytest.mark.parametrize("shape", [(), (1, 1, 1, 3, 3), (0, 3)])
def test_what_is_no_mask_tensor(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected 1 to 4 axes"):
        Mask.from_tensor(torch.ones(shape))
    with pytest.raises(ShapeError, match="expected bool or floating point"):
        Mask.from_tensor(torch.ones(3, dtype=torch.long))
