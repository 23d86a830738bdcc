"""Weights, rows, columns and statistics of calls of every kind, against the whole map."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.attention import reference
from tests.attention.masks import MASKS
from tests.attention.reference import map_of, random_call, whole_map
from visualizer import analysis
from visualizer.attention import AttentionCall, Mask, weights_of_rows

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.tensor([-1.0, 0.5, 2.0, 0.0])},
    "both": {"softcap": 3.0, "sinks": torch.tensor([-1.0, 0.5, 2.0, 0.0])},
    "NaN": {"empty_rows": math.nan},
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROUNDING = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("mask", list(MASKS))
def test_everything_is_as_defined(mask: str) -> None:
    for options in OPTIONS.values():
        call = random_call(mask=MASKS[mask], **options)
        expected = whole_map(call)
        check_weights(call, expected)
        check_statistics(call, expected)


def check_weights(call: AttentionCall, expected: Any) -> None:
    m = map_of(call)
    np.testing.assert_allclose(m.weights(), expected, **ROUNDING)
    np.testing.assert_allclose(m.row(4), expected[:, :, 4], **ROUNDING)
    for key in (0, 5, 8):
        np.testing.assert_allclose(m.column(key), expected[..., key], **ROUNDING)
    rows = weights_of_rows(call, [6, 0, 3])
    np.testing.assert_allclose(rows.numpy(), expected[:, :, [6, 0, 3]], **ROUNDING)
    found = m.logsumexp()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference.logsumexp(call), rtol=1e-5, atol=1e-5)


def check_statistics(call: AttentionCall, expected: Any) -> None:
    m = map_of(call)
    np.testing.assert_allclose(m.entropy(), reference.entropy(expected), **ROUNDING)
    np.testing.assert_allclose(m.received(), reference.received(expected), **ROUNDING)
    np.testing.assert_allclose(m.mass([0, 8]), expected[..., [0, 8]].sum(-1), **ROUNDING)
    indices, weights = m.top_keys(3)
    np.testing.assert_allclose(weights, -np.sort(-expected)[..., :3], **ROUNDING)
    found = np.take_along_axis(expected, indices, -1)
    np.testing.assert_allclose(found, weights, **ROUNDING)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types_and_key_heads(dtype: torch.dtype) -> None:
    """The reference has the same rounded queries and keys, so low precision loses nothing."""
    for key_heads in (1, 2, 4):
        for mask in ("none", "causal and keys", "window", "bias that hides"):
            check_type(dtype, key_heads, mask)


def check_type(dtype: torch.dtype, key_heads: int, mask: str) -> None:
    call = random_call(mask=MASKS[mask], dtype=dtype, key_heads=key_heads)
    m, expected = map_of(call), whole_map(call)
    exact = dtype == torch.float64
    limit = {"rtol": 0, "atol": 1e-14} if exact else ROUNDING
    assert m.dtype == m.weights().dtype == m.entropy().dtype == (np.float64 if exact else "f4")
    np.testing.assert_allclose(m.weights(), expected, **limit)
    np.testing.assert_allclose(m.entropy(), reference.entropy(expected), **limit)
    np.testing.assert_allclose(m.column(2), expected[..., 2], **limit)
    np.testing.assert_allclose(m.received(), reference.received(expected), **limit)


@pytest.mark.parametrize("mask", ["none", "causal and keys of all items"])
@pytest.mark.parametrize("layout", ["one key", "one query", "expanded", "transposed", "strided"])
def test_layouts_of_queries_and_keys(layout: str, mask: str) -> None:
    plain = random_call(batch=3, mask=MASKS[mask])
    query, key = plain.query, plain.key
    if layout == "one key":
        key = key[:1]
    elif layout == "one query":
        query = query[:1]
    elif layout == "expanded":
        query = query[:1].expand(3, -1, -1, -1)
    elif layout == "transposed":
        query, key = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key))
    else:
        query, key = (t.mT.contiguous().mT for t in (query, key))
    call = AttentionCall(query, key, -0.4, plain.mask)
    m = map_of(call)
    whole = AttentionCall(query.expand(3, -1, -1, -1), key.expand(3, -1, -1, -1), -0.4, plain.mask)
    expected = whole_map(whole)
    assert m.shape == (3, 4, 7, 9)
    np.testing.assert_allclose(m.weights(), expected, **ROUNDING)
    np.testing.assert_allclose(m.entropy(), reference.entropy(expected), **ROUNDING)
    np.testing.assert_allclose(weights_of_rows(call, [2]), expected[:, :, [2]], **ROUNDING)


def test_rows_of_some_items_and_heads() -> None:
    call = random_call(batch=3, heads=6, key_heads=2, mask=Mask(causal=2))
    expected = whole_map(call)[[2, 0]][:, [1, 2, 3, 0]][:, :, [5, 1]]
    found = weights_of_rows(call, torch.tensor([5, 1]), items=[2, 0], heads=[1, 2, 3, 0])
    np.testing.assert_allclose(found.numpy(), expected, **ROUNDING)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_pieces_that_do_not_divide(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`size` is how many rows of 9 keys a piece may have."""
    for module in ("stream", "statistics", "indexing"):
        monkeypatch.setattr(f"visualizer.attention.{module}.BLOCK_BYTES", size * 36)
    monkeypatch.setattr("visualizer.attention.fused._CHUNK_BYTES", size * 36)
    monkeypatch.setattr("visualizer.attention.scores._CONVERTED_BYTES", size * 36)
    for mask in MASKS.values():
        for softcap in (None,) if size > 2 else (2.0,):
            call = random_call(mask=mask, softcap=softcap, dtype=torch.bfloat16)
            expected = whole_map(call)
            check_weights(call, expected)
            check_statistics(call, expected)
            np.testing.assert_allclose(map_of(call).top_keys(9)[1], -np.sort(-expected), **ROUNDING)


@pytest.mark.parametrize("max_bytes", [1, 144 * 2, 144 * 5, 10**6])
def test_blocks_make_up_the_map(max_bytes: int) -> None:
    call = random_call(mask=MASKS["window"])
    expected, found = whole_map(call), np.full(call.shape, np.nan)
    for block in map_of(call).blocks(max_bytes=max_bytes):
        assert block.weights.nbytes <= max(max_bytes, 144)
        found[block.item, :, block.queries] = block.weights
    np.testing.assert_allclose(found, expected, **ROUNDING)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("mask", ["none", "causal", "window"])
def test_distance_is_that_of_analysis(prefix: int, mask: str) -> None:
    tokens = 12 + prefix
    options = {"patch_size": (3, 0.5), "prefix_tokens": prefix}
    call = random_call(queries=tokens, keys=tokens, mask=MASKS[mask])
    m, expected = map_of(call), whole_map(call)
    for grid in (None, (3, 4)):
        far = analysis.attention_distance(expected, grid, **options)
        np.testing.assert_allclose(m.distance(grid, **options), far, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keys", [0, -1, [1, 3, 3], (2, -2), slice(2, 7, 2), np.arange(9) > 4, []])
def test_mass_takes_keys_as_analysis_does(keys: Any) -> None:
    call = random_call(mask=Mask(causal=2))
    expected = analysis.mass(whole_map(call), keys)
    np.testing.assert_allclose(map_of(call).mass(keys), expected, **ROUNDING)


@pytest.mark.parametrize("offset", [-2, 0, 2, 3, 9])
@pytest.mark.parametrize("sizes", [(7, 9), (9, 7), (7, 7), (1, 9)])
def test_is_causal_agrees_with_the_weights(offset: int, sizes: tuple[int, int]) -> None:
    call = random_call(queries=sizes[0], keys=sizes[1], mask=Mask(causal=offset))
    expected = not np.triu(whole_map(call), 1 + sizes[1] - sizes[0]).any()
    assert map_of(call).is_causal is expected
    bias = Mask(bias=torch.where(torch.ones(sizes).tril(offset) > 0, 0.5, -math.inf))
    assert map_of(random_call(queries=sizes[0], keys=sizes[1], mask=bias)).is_causal is expected


def test_is_causal_as_the_record_says() -> None:
    assert map_of(random_call(), is_causal=True).is_causal is True
    assert map_of(random_call()).is_causal is False
    assert map_of(random_call(mask=MASKS["keys"])).is_causal is False


def test_peaked_maps_keep_their_precision() -> None:
    call = random_call(scale=12.0, dim=32, mask=Mask(causal=2))
    m, expected = map_of(call), whole_map(call)
    np.testing.assert_allclose(m.weights(), expected, rtol=0, atol=5e-5)
    np.testing.assert_allclose(m.entropy(), reference.entropy(expected), rtol=0, atol=3e-4)


@pytest.mark.parametrize("refusal", [RuntimeError("no such kernel"), AttributeError("none")])
def test_without_the_fused_kernel(refusal: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise refusal

    monkeypatch.setattr("visualizer.attention.fused._kernel", refuse)
    call = random_call(mask=Mask(causal=2))
    np.testing.assert_allclose(
        map_of(call).entropy(), reference.entropy(whole_map(call)), **ROUNDING
    )


def test_a_kernel_that_errs_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    from visualizer.attention import fused

    kernel = fused._kernel
    monkeypatch.setattr(fused, "_kernel", lambda *a: (kernel(*a)[0] + 0.1, kernel(*a)[1]))
    call = random_call(mask=Mask(causal=2))
    np.testing.assert_allclose(
        map_of(call).entropy(), reference.entropy(whole_map(call)), **ROUNDING
    )


def test_the_fused_kernel_is_in_use() -> None:
    """So that a change of torch does not make everything slow unnoticed."""
    from visualizer.attention.fused import fused

    for mask in ("none", "causal", "causal, queries are the last", "causal and keys"):
        with torch.no_grad():
            assert fused(random_call(mask=MASKS[mask])) is not None, mask
