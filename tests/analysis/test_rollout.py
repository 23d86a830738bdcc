"""Attention rollout: the sum over all paths through the layers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")

from tests.analysis.weights import causal_weights, drawn_weights, random_weights  # noqa: E402
from visualizer.analysis import rollout  # noqa: E402
from visualizer.errors import NotWeightsError, OutOfRangeError, ShapeError  # noqa: E402

SHARES = [0.0, 0.25, 0.5, 0.9, 1.0]


def sum_over_paths(weights: Any, residual: float) -> list[list[float]]:
    """Follow every path from an input token to an output token, one step for each layer."""
    layers, tokens = len(weights), len(weights[0])
    result = [[0.0] * tokens for _ in range(tokens)]
    for path in itertools.product(range(tokens), repeat=layers + 1):
        steps = zip(weights, path[1:], path[:-1], strict=True)
        result[path[-1]][path[0]] += math.prod(
            (1 - residual) * layer[to][come] + residual * (to == come) for layer, to, come in steps
        )
    return result


@pytest.mark.parametrize("residual", SHARES)
@pytest.mark.parametrize(("layers", "tokens"), [(1, 3), (2, 2), (3, 4), (5, 3), (1, 1)])
def test_it_is_the_sum_over_paths(layers: int, tokens: int, residual: float) -> None:
    weights = random_weights(layers, tokens, tokens)
    expected = sum_over_paths(weights.tolist(), residual)
    np.testing.assert_allclose(rollout(weights, residual=residual), expected, rtol=1e-12)


def test_the_residual_share_is_a_half_unless_said() -> None:
    weights = random_weights(3, 4, 4)
    expected = sum_over_paths(weights.tolist(), 0.5)
    np.testing.assert_allclose(rollout(weights), expected, rtol=1e-12)


def test_the_last_layer_is_the_leftmost() -> None:
    first, last = np.eye(3)[[1, 2, 0]], np.eye(3)[[0, 2, 1]]
    # Output 1 takes token 2 in the last layer, which takes token 0 in the first.
    got = rollout([first, last], residual=0)
    assert got.argmax(axis=-1).tolist() == [1, 0, 2]
    np.testing.assert_array_equal(np.sort(got), [[0, 0, 1]] * 3)


def test_one_layer_without_residual_is_itself() -> None:
    weights = random_weights(1, 4, 4)
    np.testing.assert_allclose(rollout(weights, residual=0), weights[0], rtol=1e-14)


@given(drawn_weights(square=True, leading=1), st.sampled_from(SHARES))
@settings(max_examples=60, deadline=None)
def test_rows_sum_to_one(weights: Any, residual: float) -> None:
    got = rollout(weights, residual=residual)
    assert got.shape == weights.shape[1:]
    assert (got >= 0).all()
    np.testing.assert_allclose(got.sum(axis=-1), 1, rtol=1e-12)


@given(drawn_weights(square=True, leading=1))
@settings(max_examples=30, deadline=None)
def test_a_residual_of_one_lets_nothing_pass_between_tokens(weights: Any) -> None:
    np.testing.assert_array_equal(rollout(weights, residual=1), np.eye(weights.shape[-1]))


@given(drawn_weights(square=True, leading=1), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_other_order_of_tokens_gives_the_same_in_that_order(weights: Any, random: Any) -> None:
    order = list(range(weights.shape[-1]))
    random.shuffle(order)
    expected = rollout(weights)[np.ix_(order, order)]
    np.testing.assert_allclose(rollout(weights[:, order][:, :, order]), expected, atol=1e-12)


def test_layers_can_be_rolled_out_piece_by_piece() -> None:
    weights = random_weights(5, 4, 4)
    np.testing.assert_allclose(rollout(weights), rollout(weights[2:]) @ rollout(weights[:2]))


@pytest.mark.parametrize("residual", SHARES)
def test_one_query_is_its_row(residual: float) -> None:
    weights = random_weights(3, 5, 5)
    whole = rollout(weights, residual=residual)
    for query in (0, 3, 4, -1, -5, np.int64(2)):
        got = rollout(weights, residual=residual, query=query)
        assert got.shape == (5,)
        np.testing.assert_allclose(got, whole[query], rtol=1e-12)
    single = rollout(weights.astype(np.float16), query=1)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, rollout(weights)[1], atol=1e-3)


@pytest.mark.parametrize("query", [5, -6, 1.5, True, "CLS"])
def test_a_query_that_does_not_exist_is_refused(query: Any) -> None:
    with pytest.raises(OutOfRangeError, match=rf"query is {query!r}; expected 0 to 4, or -1 to -5"):
        rollout(random_weights(2, 5, 5), query=query)


def test_causal_weights_stay_causal() -> None:
    got = rollout([causal_weights(6)] * 4)
    assert (np.triu(got, 1) == 0).all()
    np.testing.assert_array_equal(got[0], np.eye(6)[0])


def test_rounded_rows_do_not_drift_over_the_layers() -> None:
    exact = random_weights(1, 5, 5)
    for error in (1.015, 0.985):
        got = rollout(np.repeat(exact * error, 48, axis=0), residual=0)
        np.testing.assert_allclose(got, rollout(np.repeat(exact, 48, axis=0), residual=0))


def test_a_thousand_tokens_of_float16() -> None:
    exact = random_weights(3, 1000, 1000)
    got = rollout(exact.astype(np.float16))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.sum(axis=-1), 1, atol=1e-5)
    assert np.abs(got - rollout(exact)).max() < 1e-3


@pytest.mark.parametrize("residual", [0.25, np.float64(0.25), np.float32(0.25), 0, 1, np.int64(1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_type_of_the_residual_does_not_matter(residual: Any, dtype: str) -> None:
    weights = random_weights(3, 4, 4).astype(dtype)
    got = rollout(weights, residual=residual)
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, rollout(weights, residual=float(residual)))


@pytest.mark.parametrize("residual", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_residual_that_is_no_share_is_refused(residual: float) -> None:
    with pytest.raises(OutOfRangeError, match=rf"residual is {residual}.* 0 to 1"):
        rollout(random_weights(2, 3, 3), residual=residual)


@pytest.mark.parametrize("shape", [(3,), (), (0, 3), (0, 3, 3), (2, 0, 0)])
def test_too_few_axes_or_an_empty_one_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="weights has shape") as caught:
        rollout(np.ones(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((3, 3), "as many queries as keys; got (3, 3). For a single layer: weights[None]"),
        ((2, 3), "as many queries as keys; got (2, 3). For a single layer: weights[None]"),
        ((2, 3, 4), "as many queries as keys; got (2, 3, 4)"),
        ((2, 4, 3), "as many queries as keys; got (2, 4, 3)"),
        ((2, 3, 3, 3), "got (2, 3, 3, 3). Average over the heads first"),
        ((2, 6, 3, 3), "got (2, 6, 3, 3). Average over the heads first: weights.mean(axis=1)"),
        ((2, 1, 6, 3, 3), "Choose one item of the batch and average over the heads"),
        ((1, 2, 1, 6, 3, 3), "got (1, 2, 1, 6, 3, 3)"),
    ],
)
def test_other_axes_are_refused_with_a_hint(shape: tuple[int, ...], hint: str) -> None:
    with pytest.raises(ShapeError, match=r"shape \(layer, query, key\)") as caught:
        rollout(random_weights(*shape))
    assert hint in str(caught.value)


def test_following_the_hints_works() -> None:
    weights = random_weights(2, 6, 3, 3)
    expected = sum_over_paths(weights.mean(axis=1).tolist(), 0.5)
    np.testing.assert_allclose(rollout(weights.mean(axis=1)), expected)
    np.testing.assert_allclose(rollout(weights[:, None][:, 0].mean(axis=1)), expected)
    single = weights[0, 0]
    expected = sum_over_paths([single.tolist()], 0.5)
    np.testing.assert_allclose(rollout(single[None]), expected)


def test_layers_of_different_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match="can't be made an array.*equal lengths"):
        rollout([np.eye(2), np.eye(3)])


def test_scores_are_refused() -> None:
    with pytest.raises(NotWeightsError, match=r"shape \(2, 3, 3\).*\[0, 0\].*sums to 6"):
        rollout(np.full((2, 3, 3), 2.0))
