"""Relevance and head importance: from arrays, and from lazy maps with their gradients."""

from __future__ import annotations

from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")

from tests.analysis.weights import random_weights  # noqa: E402
from visualizer.analysis import head_importance, relevance  # noqa: E402
from visualizer.errors import (  # noqa: E402
    NoGradientError,
    NotWeightsError,
    OutOfRangeError,
    ShapeError,
)


def gradients_for(weights: Any) -> Any:
    return np.random.default_rng(1).normal(size=weights.shape)


def by_hand(weights: Any, gradients: Any) -> Any:
    """Follow the paper, a number at a time."""
    layers, heads, tokens, _ = weights.shape
    result = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
    for layer in range(layers):
        mean = [
            [
                sum(
                    max(float(weights[layer, h, i, j]) * float(gradients[layer, h, i, j]), 0.0)
                    for h in range(heads)
                )
                / heads
                for j in range(tokens)
            ]
            for i in range(tokens)
        ]
        result = [
            [
                result[i][j] + sum(mean[i][m] * result[m][j] for m in range(tokens))
                for j in range(tokens)
            ]
            for i in range(tokens)
        ]
    return np.array(result)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("layers", "heads", "tokens"), [(1, 1, 3), (3, 2, 5), (4, 3, 4)])
def test_it_is_the_rule_of_the_paper(causal: bool, layers: int, heads: int, tokens: int) -> None:
    weights = random_weights(layers, heads, tokens, tokens)
    if causal:
        weights = np.tril(weights) / np.tril(weights).sum(-1, keepdims=True)
    gradients = gradients_for(weights)
    expected = by_hand(weights, gradients)
    np.testing.assert_allclose(relevance(weights, gradients), expected, rtol=1e-12)
    for query in range(-tokens, tokens):
        row = relevance(weights, gradients, query=query)
        np.testing.assert_allclose(row, expected[query], rtol=1e-12)


def test_what_speaks_against_the_outcome_does_not_count() -> None:
    weights = random_weights(2, 2, 4, 4)
    np.testing.assert_array_equal(relevance(weights, -np.ones_like(weights)), np.eye(4))


def test_importance_is_the_sum_of_weights_times_gradients() -> None:
    weights = random_weights(3, 2, 5, 7)
    gradients = gradients_for(weights)
    expected = np.abs(np.einsum("lhqk,lhqk->lh", weights, gradients))
    np.testing.assert_allclose(head_importance(weights, gradients), expected, rtol=1e-12)


def test_float32_stays_float32() -> None:
    weights = random_weights(2, 2, 4, 4).astype(np.float32)
    gradients = gradients_for(weights).astype(np.float32)
    assert relevance(weights, gradients).dtype == np.float32
    assert relevance(weights, gradients, query=0).dtype == np.float32
    assert head_importance(weights, gradients).dtype == np.float32


def test_arrays_need_gradients() -> None:
    weights = random_weights(2, 2, 4, 4)
    for function in (relevance, head_importance):
        with pytest.raises(ShapeError, match=r"gradients are missing.*gradients=True"):
            function(weights)
        with pytest.raises(ShapeError, match=r"gradients have shape \(2, 2, 4\)"):
            function(weights, weights[..., 0])


def test_what_is_no_self_attention_of_several_heads() -> None:
    for shape in [(2, 4, 4), (2, 3, 4, 5), (2, 2, 3, 4, 4)]:
        weights = random_weights(*shape)
        with pytest.raises(ShapeError, match="relevance takes self-attention"):
            relevance(weights, weights)
    with pytest.raises(NotWeightsError):
        relevance(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)))


@pytest.mark.parametrize("query", [4, -5, True, 0.5, "0"])
def test_a_query_that_does_not_exist(query: Any) -> None:
    weights = random_weights(2, 2, 4, 4)
    with pytest.raises(OutOfRangeError, match="query"):
        relevance(weights, weights, query=query)


def test_arrays_have_no_items() -> None:
    weights = random_weights(2, 2, 4, 4)
    with pytest.raises(OutOfRangeError, match="choose the item before"):
        relevance(weights, weights, item=0)


class TestLazyMaps:
    """The same of maps that are gone through piece by piece."""

    torch: Any = None

    @pytest.fixture(autouse=True)
    def _need_torch(self) -> None:
        TestLazyMaps.torch = pytest.importorskip("torch", reason="torch is not installed")

    def maps(self, tokens: int = 12, batch: int = 1, layers: int = 3, **options: Any) -> list[Any]:
        """Captured maps of calls of grouped, causal attention, with gradients."""
        import visualizer

        torch = self.torch
        torch.manual_seed(0)
        with visualizer.capture(gradients=True, **options) as captured:
            for _ in range(layers):
                q = torch.randn(batch, 4, tokens, 8, requires_grad=True)
                k, v = (torch.randn(batch, 2, tokens, 8, requires_grad=True) for _ in range(2))
                mixed = torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=True, enable_gqa=True
                )
                mixed.pow(3).sum().backward()
        return list(captured.attention)

    @pytest.mark.parametrize("keep", ["qk", "rows"])
    @pytest.mark.parametrize("tokens", [12, 600])
    def test_it_is_that_of_arrays(self, keep: str, tokens: int) -> None:
        maps = self.maps(tokens, keep=keep)
        weights = np.stack([np.asarray(each)[0] for each in maps]).astype(np.float64)
        gradients = np.stack([each.gradient()[0] for each in maps]).astype(np.float64)
        expected = relevance(weights, gradients)
        for query in (0, tokens // 2, -1):
            found = relevance(maps, query=query)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected[query], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(relevance(maps), expected, rtol=1e-5, atol=1e-5)
        importance = head_importance(weights, gradients)
        np.testing.assert_allclose(head_importance(maps)[:, 0], importance, rtol=1e-4, atol=1e-3)

    def test_one_item_of_several(self) -> None:
        maps = self.maps(batch=3)
        for item in range(3):
            weights = np.stack([np.asarray(each)[item] for each in maps])
            gradients = np.stack([each.gradient(item=item) for each in maps])
            expected = relevance(weights, gradients, query=5)
            np.testing.assert_allclose(
                relevance(maps, query=5, item=item), expected, rtol=1e-5, atol=1e-5
            )
        with pytest.raises(ShapeError, match="batch of 3"):
            relevance(maps, query=5)
        assert head_importance(maps).shape == (3, 3, 4)

    def test_a_single_map(self) -> None:
        (made,) = self.maps(layers=1)
        np.testing.assert_array_equal(relevance(made, query=2), relevance([made], query=2))
        assert head_importance(made).shape == (1, 4)

    def test_maps_of_weights_and_their_gradients(self) -> None:
        from visualizer import AttentionMap

        weights = random_weights(2, 3, 5, 5)
        gradients = gradients_for(weights)
        maps = [
            AttentionMap.from_weights(each, gradient=of)
            for each, of in zip(weights, gradients, strict=True)
        ]
        np.testing.assert_allclose(
            relevance(maps, query=1), relevance(weights, gradients, query=1), rtol=1e-12
        )
        np.testing.assert_allclose(
            head_importance(maps)[:, 0], head_importance(weights, gradients), rtol=1e-12
        )

    def test_maps_without_gradients(self) -> None:
        from visualizer import AttentionMap

        made = AttentionMap.from_weights(random_weights(3, 5, 5))
        for function in (relevance, head_importance):
            with pytest.raises(NoGradientError):
                function([made])
            with pytest.raises(ShapeError, match="AttentionMaps, which have their own"):
                function([made], [made])

    def test_maps_that_are_not_one_for_each_layer(self) -> None:
        from visualizer import AttentionMap

        maps = self.maps()
        with pytest.raises(ShapeError, match=r"calls\[-1\]"):
            relevance([maps, maps])
        other = AttentionMap.from_weights(random_weights(3, 4, 5), gradient=np.ones((3, 4, 5)))
        with pytest.raises(ShapeError, match=r"\(query, key\)"):
            relevance([*maps, other])
