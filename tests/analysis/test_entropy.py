"""Entropy of attention: against its definition, scipy, and closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")

from tests.analysis.weights import (  # noqa: E402
    causal_weights,
    drawn_weights,
    even_weights,
    random_weights,
)
from visualizer.analysis import entropy  # noqa: E402
from visualizer.errors import NotWeightsError, ShapeError  # noqa: E402

NAN = float("nan")


def from_definition(row: list[float]) -> float:
    return -sum(share * math.log(share) for share in row if share > 0)


@given(drawn_weights())
@settings(max_examples=60, deadline=None)
def test_it_is_minus_the_sum_of_a_log_a(weights: Any) -> None:
    expected = [from_definition(row) for row in weights.tolist()]
    np.testing.assert_allclose(entropy(weights), expected, atol=1e-14)


def test_it_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    weights = random_weights(2, 3, 5, 40)
    np.testing.assert_allclose(entropy(weights), stats.entropy(weights, axis=-1), rtol=1e-12)


@pytest.mark.parametrize("keys", [1, 2, 7, 100])
def test_even_attention_has_the_logarithm_of_the_keys(keys: int) -> None:
    np.testing.assert_allclose(entropy(even_weights(3, keys)), [math.log(keys)] * 3)


def test_one_key_has_none_and_no_minus_sign() -> None:
    got = entropy(np.eye(4))
    np.testing.assert_array_equal(got, np.zeros(4))
    assert not np.signbit(got).any()


def test_independent_choices_add_up() -> None:
    rows, columns = random_weights(2, 6), random_weights(2, 9, seed=1)
    both = np.einsum("qr,qc->qrc", rows, columns).reshape(2, 54)
    np.testing.assert_allclose(entropy(both), entropy(rows) + entropy(columns))


@given(drawn_weights(leading=1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_it_is_between_none_and_even(weights: Any, normalized: bool) -> None:
    got = entropy(weights, normalized=normalized)
    keys = weights.shape[-1]
    assert got.shape == weights.shape[:-1]
    if normalized and keys == 1:
        assert np.isnan(got).all()
    else:
        assert (got >= 0).all()
        assert (got <= (1 if normalized else math.log(keys) + 1e-12)).all()


@given(drawn_weights(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_keys_does_not_matter(weights: Any, random: Any) -> None:
    order = list(range(weights.shape[-1]))
    random.shuffle(order)
    np.testing.assert_allclose(entropy(weights[:, order]), entropy(weights), atol=1e-14)


@pytest.mark.parametrize("keys", [2, 5, 64])
def test_normalized_is_the_share_of_even_attention(keys: int) -> None:
    weights = random_weights(2, 4, keys)
    expected = [[from_definition(row) / math.log(keys) for row in head] for head in weights]
    np.testing.assert_allclose(entropy(weights, normalized=True), expected)
    np.testing.assert_allclose(entropy(even_weights(4, keys), normalized=True), 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("keys", [3, 197, 4097, 65536])
def test_normalized_is_never_above_one(keys: int, dtype: str) -> None:
    got = entropy(even_weights(3, keys).astype(dtype), normalized=True)
    assert got.dtype == np.float32
    assert (got <= 1).all()
    np.testing.assert_allclose(got, 1, rtol=1e-6)


@pytest.mark.parametrize("keys", [197, 65536])
def test_sums_of_many_keys_are_exact(keys: int) -> None:
    weights = random_weights(3, keys).astype(np.float32)
    sums = weights.sum(axis=-1, keepdims=True, dtype=np.float64)
    exact = [from_definition(row) for row in (weights / sums).tolist()]
    np.testing.assert_allclose(entropy(weights), exact, rtol=1e-6)
    expected = [spread / math.log(keys) for spread in exact]
    np.testing.assert_allclose(entropy(weights, normalized=True), expected, rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_single_key_is_neither_even_nor_uneven() -> None:
    weights = np.ones((2, 3, 1))
    np.testing.assert_array_equal(entropy(weights), np.zeros((2, 3)))
    np.testing.assert_array_equal(entropy(weights, normalized=True), np.full((2, 3), NAN))


@pytest.mark.filterwarnings("error")
def test_causal_queries_are_measured_by_what_they_see() -> None:
    weights = causal_weights(5)
    got = entropy(weights, normalized=True, causal=True)
    np.testing.assert_allclose(got, [NAN, 1, 1, 1, 1])
    plain = [math.log(seen) / math.log(5) for seen in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(entropy(weights, normalized=True), plain)


@pytest.mark.parametrize("queries", [1, 2, 4])
def test_fewer_queries_than_keys_are_the_last(queries: int) -> None:
    whole = np.tril(random_weights(3, 6, 6))
    whole /= whole.sum(axis=-1, keepdims=True)
    expected = entropy(whole, normalized=True, causal=True)[:, -queries:]
    got = entropy(whole[:, -queries:], normalized=True, causal=True)
    np.testing.assert_array_equal(got, expected)
    assert not np.isnan(got).any()


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        (np.full((2, 3, 3), 1 / 3), "0.67"),
        (np.full((3, 5), 0.2), "0.4"),  # the last three of five queries
        (np.full((5, 3), 1 / 3), "1"),  # the first two see no key
        (np.eye(3)[[0, 2, 1]], "1"),
        ([[0.97, 0.03], [0.5, 0.5]], "0.03"),
    ],
    ids=["even", "fewer queries", "more queries", "one ahead", "a little"],
)
def test_causal_refuses_what_looks_ahead(weights: Any, share: str) -> None:
    with pytest.raises(NotWeightsError, match="are not causal.*Leave causal=True out") as caught:
        entropy(weights, normalized=True, causal=True)
    assert f"weights of shape {np.shape(weights)} are not causal" in str(caught.value)
    assert f"a query gives {share} of its attention" in str(caught.value)


def test_causal_forgives_rounding() -> None:
    got = entropy([[0.985, 0.015], [0.5, 0.5]], normalized=True, causal=True)
    np.testing.assert_allclose(got, [NAN, 1])


def test_causal_changes_nothing_that_is_not_normalized() -> None:
    weights = random_weights(2, 5, 5)
    np.testing.assert_array_equal(entropy(weights, causal=True), entropy(weights))


def test_rounding_of_the_sum_does_not_matter() -> None:
    weights = random_weights(4, 20)
    for error in (1.015, 0.985):
        np.testing.assert_allclose(entropy(weights * error), entropy(weights))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("dtype", "tiny"), [("float32", 1e-45), ("float64", 5e-324)])
def test_the_tiniest_weights_add_nothing(dtype: str, tiny: float) -> None:
    weights = np.array([[1, tiny, 0], [0.5, 0.5, tiny]], dtype)
    assert (weights[:, 1:].min(axis=-1) >= 0).all()
    assert weights[0, 1] > 0
    np.testing.assert_allclose(entropy(weights), [0, math.log(2)], atol=1e-7)


@pytest.mark.filterwarnings("error")
def test_a_thousand_keys_of_float16() -> None:
    exact = random_weights(8, 1000, spread=6)
    half = exact.astype(np.float16)
    assert (half == 0).any()  # some underflow
    expected = [from_definition(row) for row in exact.tolist()]
    got = entropy(half)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=5e-3)
    np.testing.assert_allclose(
        entropy(even_weights(2, 1000).astype(np.float16), normalized=True), 1, atol=1e-5
    )


def test_bfloat16_of_a_model() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    exact = random_weights(2, 8, 1000)
    got = entropy(torch.from_numpy(exact).to(torch.bfloat16))
    expected = [[from_definition(row) for row in head] for head in exact.tolist()]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-2)


@pytest.mark.parametrize("shape", [(4,), (), (0, 4), (4, 0), (0, 4, 4)])
def test_fewer_than_two_axes_or_an_empty_one_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(…, query, key\).*empty") as error:
        entropy(np.ones(shape))
    assert f"has shape {shape}" in str(error.value)


def test_what_is_no_weights_is_refused() -> None:
    with pytest.raises(NotWeightsError, match=r"shape \(1, 2\).*sums to 3"):
        entropy([[1.0, 2.0]])
