"""Attention to chosen keys, and to the token itself."""

from __future__ import annotations

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
from visualizer.analysis import diagonal_mass, mass  # noqa: E402
from visualizer.errors import NotWeightsError, OutOfRangeError, ShapeError  # noqa: E402


@given(drawn_weights(), st.data())
@settings(max_examples=60, deadline=None)
def test_it_is_the_sum_over_the_chosen_keys(weights: Any, data: Any) -> None:
    chosen = data.draw(st.sets(st.integers(0, weights.shape[-1] - 1)))
    expected = [sum(row[key] for key in chosen) / sum(row) for row in weights.tolist()]
    got = mass(weights, sorted(chosen))
    np.testing.assert_allclose(got, expected, atol=1e-14)
    assert (got >= 0).all()
    assert (got <= 1 + 1e-14).all()


@given(drawn_weights(leading=2), st.data())
@settings(max_examples=30, deadline=None)
def test_the_chosen_and_the_others_are_all(weights: Any, data: Any) -> None:
    keys = weights.shape[-1]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=keys, max_size=keys)))
    got = mass(weights, mask)
    assert got.shape == weights.shape[:-1]
    np.testing.assert_allclose(got + mass(weights, ~mask), 1)
    np.testing.assert_allclose(mass(weights, slice(None)), 1)


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (0, [0]),
        (3, [3]),
        (-1, [4]),
        (np.int64(2), [2]),
        ([1, 3], [1, 3]),
        ([3, 1], [1, 3]),
        ((1, 3), [1, 3]),
        ((2,), [2]),
        ((0, -1), [0, 4]),
        ((), []),
        ([0, -1], [0, 4]),
        ([2, 2, 2], [2]),
        (range(1, 4), [1, 2, 3]),
        (np.array([1, 4]), [1, 4]),
        (slice(0, 2), [0, 1]),
        (slice(-2, None), [3, 4]),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(0, 0), []),
        ([], []),
        ([True, False, False, True, False], [0, 3]),
        ((True, False, False, True, False), [0, 3]),
        ([False] * 5, []),
    ],
    ids=repr,
)
def test_keys_are_chosen_in_several_ways(keys: Any, chosen: list[int]) -> None:
    weights = random_weights(2, 3, 4, 5)
    expected = sum((weights[..., key] for key in chosen), np.zeros((2, 3, 4)))
    np.testing.assert_allclose(mass(weights, keys), expected, atol=1e-15)


def test_keys_may_be_a_tensor() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weights = random_weights(4, 5)
    expected = weights[:, 0] + weights[:, 3]
    np.testing.assert_allclose(mass(weights, torch.tensor([0, 3])), expected)
    mask = torch.tensor([True, False, False, True, False])
    np.testing.assert_allclose(mass(weights, mask), expected)


def test_causal_attention_to_the_first_token() -> None:
    np.testing.assert_allclose(mass(causal_weights(5), 0), [1 / seen for seen in (1, 2, 3, 4, 5)])


def test_a_thousand_keys_of_float16() -> None:
    exact = random_weights(4, 1000)
    got = mass(exact.astype(np.float16), slice(0, 500))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [sum(row[:500]) for row in exact.tolist()], atol=1e-3)


@pytest.mark.parametrize(
    "keys",
    [5, -6, [0, 5], [True], [True] * 6, 1.5, "a", (0, 5), (0, ...), np.ones((2, 5), bool)],
    ids=repr,
)
def test_keys_that_do_not_exist_are_refused(keys: Any) -> None:
    with pytest.raises(OutOfRangeError, match=r"shape \(2, 4, 5\), with 5 keys") as caught:
        mass(random_weights(2, 4, 5), keys)
    assert f"keys {keys!r} don't fit" in str(caught.value)
    assert isinstance(caught.value, IndexError)


@pytest.mark.parametrize("keys", [None, True, False, ...], ids=repr)
def test_what_numpy_takes_for_every_key_or_none_is_refused(keys: Any) -> None:
    with pytest.raises(OutOfRangeError) as caught:
        mass(random_weights(2, 4, 5), keys)
    assert str(caught.value) == f"keys is {keys!r}; expected an index, several, a slice or a mask"


def test_a_tuple_is_not_an_index_of_several_axes() -> None:
    weights = random_weights(6, 2, 5)
    np.testing.assert_array_equal(mass(weights, (0, 1)), mass(weights, [0, 1]))
    assert mass(weights, (0, 1)).shape == (6, 2)


@pytest.mark.parametrize("error", [1.015, 0.985])
def test_they_are_shares_of_what_the_row_sums_to(error: float) -> None:
    weights = random_weights(3, 5, 5)
    for call in (lambda w: mass(w, [0, 3]), lambda w: mass(w, slice(0, 4)), diagonal_mass):
        np.testing.assert_allclose(call(weights * error), call(weights), rtol=1e-14)
    np.testing.assert_array_equal(mass(np.eye(5) * error, slice(None)), np.ones(5))
    np.testing.assert_array_equal(diagonal_mass(np.eye(5) * error), np.ones(5))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rounded_rows_have_everything(dtype: str) -> None:
    weights = random_weights(64, 197, seed=3).astype(dtype)
    assert (weights.sum(axis=-1, dtype=np.float64) > 1).any()
    np.testing.assert_allclose(mass(weights, slice(None)), 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_rows_have_more_than_everything(dtype: str) -> None:
    weights = random_weights(64, 197, seed=3).astype(dtype)
    assert (mass(weights, slice(None)) <= 1).all()


def test_no_tokens_have_more_than_everything() -> None:
    weights = np.eye(197) * 1.015
    weights[:, 7] += 1e-9
    for dtype in ("float16", "float32", "float64"):
        got = diagonal_mass(weights.astype(dtype))
        assert (got <= 1).all()
        np.testing.assert_allclose(got, 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (), (0, 0)])
def test_fewer_than_two_axes_or_an_empty_one_are_refused(shape: tuple[int, ...]) -> None:
    for call in (lambda: mass(np.ones(shape), 0), lambda: diagonal_mass(np.ones(shape))):
        with pytest.raises(ShapeError, match=r"expected \(…, query, key\)") as caught:
            call()
        assert f"has shape {shape}" in str(caught.value)


def test_scores_are_refused() -> None:
    for call in (lambda: mass([[3.0, 4.0]], 0), lambda: diagonal_mass([[3.0, 4.0]])):
        with pytest.raises(NotWeightsError, match=r"\[0\] sums to 7, expected 1.*softmax"):
            call()


@given(drawn_weights(square=True, leading=1))
@settings(max_examples=30, deadline=None)
def test_the_diagonal_is_each_token_and_itself(weights: Any) -> None:
    heads = weights.tolist()
    expected = [[row[token] / sum(row) for token, row in enumerate(head)] for head in heads]
    got = diagonal_mass(weights)
    np.testing.assert_allclose(got, expected, rtol=1e-15)
    assert (got <= 1).all()


@given(drawn_weights(square=True), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_other_order_of_tokens_gives_the_same_in_that_order(weights: Any, random: Any) -> None:
    order = list(range(len(weights)))
    random.shuffle(order)
    got = diagonal_mass(weights[np.ix_(order, order)])
    np.testing.assert_allclose(got, diagonal_mass(weights)[order], rtol=1e-15)


def test_the_diagonal_of_heads_has_their_axes() -> None:
    weights = random_weights(2, 3, 5, 5)
    assert diagonal_mass(weights).shape == (2, 3, 5)
    row = weights[1, 2, 4].tolist()
    assert diagonal_mass(weights)[1, 2, 4] == pytest.approx(row[4] / sum(row), rel=1e-15)


@pytest.mark.parametrize("shape", [(2, 3), (4, 3, 2)])
def test_cross_attention_has_no_diagonal(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="diagonal needs as many queries as keys") as caught:
        diagonal_mass(even_weights(*shape))
    assert str(shape) in str(caught.value)
