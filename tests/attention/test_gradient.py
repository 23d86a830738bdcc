"""The gradient of a map: of weights that were given, and computed from an output's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.analysis.lazy_maps import Record
from visualizer.attention import AttentionCall, AttentionMap, Mask, OutputGradient
from visualizer.attention.gradient import products
from visualizer.errors import MapTooLargeError, NoGradientError, OutOfRangeError, ShapeError


@dataclass
class Differentiated(Record):
    """A call that nobody intercepted, with a gradient."""

    of_output: Any = None

    def read_gradient(self) -> Any:
        return self.of_output


def made(call: AttentionCall, gradient: Any) -> AttentionMap:
    return AttentionMap(Differentiated(call, of_output=gradient))


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype)


CASES = {
    "plain": (4, 4, 1, {}),
    "grouped": (6, 2, 1, {"mask": Mask(causal=0)}),
    "one value head": (4, 1, 2, {"mask": Mask(causal=0, window=5)}),
    "batch of keys is 1": (4, 2, 2, {}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_output_times_value(name: str, dtype: torch.dtype) -> None:
    heads, value_heads, batch, options = CASES[name]
    items = 1 if "batch" in name else batch
    call = AttentionCall(
        random(batch, heads, 19, 8), random(items, value_heads, 19, 8), 0.5, **options
    )
    output, value = (
        random(batch, heads, 19, 5, dtype=dtype),
        random(items, value_heads, 19, 5, dtype=dtype),
    )
    expected = torch.einsum(
        "bhqd,bhkd->bhqk",
        output.double(),
        value.double().repeat_interleave(heads // value_heads, 1).expand(batch, -1, -1, -1),
    ).numpy()
    found = made(call, OutputGradient(output, value))
    exact = 1e-12 if dtype == torch.float64 else 1e-5
    assert found.gradient().dtype == (np.float64 if dtype == torch.float64 else np.float32)
    np.testing.assert_allclose(found.gradient(), expected, rtol=0, atol=exact)
    np.testing.assert_allclose(found.gradient(7), expected[:, :, 7], rtol=0, atol=exact)
    np.testing.assert_allclose(found.gradient(-2, head=-1), expected[:, -1, -2], rtol=0, atol=exact)
    np.testing.assert_allclose(
        found.gradient(head=1, item=batch - 1), expected[batch - 1, 1], rtol=0, atol=exact
    )


@pytest.mark.parametrize("form", ["call", "weights"])
@pytest.mark.parametrize("name", CASES)
def test_products_are_of_weights_and_gradient(name: str, form: str) -> None:
    heads, value_heads, batch, options = CASES[name]
    items = 1 if "batch" in name else batch
    call = AttentionCall(
        random(batch, heads, 300, 8), random(items, value_heads, 300, 8), 0.5, **options
    )
    gradient = OutputGradient(random(batch, heads, 300, 8), random(items, value_heads, 300, 8))
    map_ = made(call, gradient)
    weights = np.asarray(map_)
    source = call if form == "call" else torch.from_numpy(weights)
    for where in (gradient, torch.from_numpy(map_.gradient())):
        found = np.zeros(map_.shape, np.float32)
        for piece in products(source, where):
            found[piece.item, piece.heads, piece.queries, piece.keys] = piece.weights
        np.testing.assert_allclose(found, weights * map_.gradient(), rtol=1e-5, atol=1e-6)


def test_some_queries_of_an_item() -> None:
    call = AttentionCall(random(3, 2, 9, 4), random(3, 2, 9, 4), 1.0)
    gradient = OutputGradient(random(3, 2, 9, 4), random(3, 2, 9, 4))
    whole = np.asarray(made(call, gradient)) * made(call, gradient).gradient()
    found = np.zeros((2, 9, 9), np.float32)
    for piece in products(call, gradient, items=slice(1, 2), queries=slice(3, 7)):
        assert piece.item == 1
        found[piece.heads, piece.queries, piece.keys] = piece.weights
    np.testing.assert_allclose(found[:, 3:7], whole[1, :, 3:7], rtol=1e-5, atol=1e-6)
    assert not found[:, :3].any()
    assert not found[:, 7:].any()


def test_weights_may_come_with_theirs() -> None:
    weights = torch.randn(2, 5, 5).softmax(-1)
    gradient = np.random.default_rng(0).normal(size=(2, 5, 5))
    found = AttentionMap.from_weights(weights, gradient=gradient)
    np.testing.assert_array_equal(found.gradient(), gradient[None].astype(np.float32))
    np.testing.assert_array_equal(found.gradient(2, head=1), gradient[None, 1, 2].astype("f4"))


def test_weights_alone_have_none() -> None:
    with pytest.raises(NoGradientError, match=r"from_weights\(array, gradient="):
        AttentionMap.from_weights(np.eye(3)).gradient()


@pytest.mark.parametrize("gradient", [np.eye(4), np.ones((2, 3, 3)), [[1.0, 2.0], [3.0]], "no"])
def test_a_gradient_of_another_shape(gradient: Any) -> None:
    with pytest.raises(ShapeError, match="gradient"):
        AttentionMap.from_weights(np.eye(3), gradient=gradient)


def test_operands_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="the gradient of an output has shape"):
        OutputGradient(random(1, 4, 5, 8), random(1, 3, 5, 8))


def test_it_is_not_made_where_it_is_too_large() -> None:
    found = AttentionMap.from_weights(np.eye(64), gradient=np.eye(64))
    with pytest.raises(MapTooLargeError, match="the gradient, of shape"):
        found.gradient(max_bytes=4 * 64 * 64 - 1)
    assert found.gradient(max_bytes=4 * 64 * 64 * 2).shape == (1, 1, 64, 64)
    assert found.gradient(3, max_bytes=8 * 64).shape == (1, 1, 64)
    with pytest.raises(OutOfRangeError, match="query 64"):
        found.gradient(64)
