"""Mean attention distance: against loops over all pairs of tokens, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")

from tests.analysis.weights import causal_weights, even_weights, random_weights  # noqa: E402
from visualizer.analysis import attention_distance, specialization  # noqa: E402
from visualizer.errors import NotWeightsError, OutOfRangeError, ShapeError  # noqa: E402


def from_definition(
    weights: list[list[float]],
    places: list[tuple[float, ...]],
    prefix: int = 0,
) -> float:
    """Average over the queries, for each the distances to its keys, by the weights."""
    means = []
    for query, here in enumerate(places):
        row = weights[prefix + query][prefix:]
        if sum(row) > 0:
            far = sum(
                share * math.dist(here, place) for share, place in zip(row, places, strict=True)
            )
            means.append(far / sum(row))
    return sum(means) / len(means)


def grid_places(rows: int, columns: int, height: float = 1, width: float = 1) -> Any:
    return [(row * height, column * width) for row in range(rows) for column in range(columns)]


def text_places(tokens: int) -> Any:
    return [(float(token),) for token in range(tokens)]


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (3, 3), (2, 4), (4, 2)])
def test_it_is_the_mean_over_pairs_of_patches(rows: int, columns: int, prefix: int) -> None:
    tokens = rows * columns + prefix
    weights = random_weights(2, 3, tokens, tokens)
    got = attention_distance(weights, (rows, columns), prefix_tokens=prefix)
    places = grid_places(rows, columns)
    expected = [[from_definition(head.tolist(), places, prefix) for head in w] for w in weights]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_without_a_grid_it_is_that_of_the_positions(prefix: int) -> None:
    weights = random_weights(2, 7, 7)
    got = attention_distance(weights, prefix_tokens=prefix)
    places = text_places(7 - prefix)
    expected = [from_definition(head.tolist(), places, prefix) for head in weights]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_one_number_is_a_square_grid() -> None:
    weights = random_weights(9, 9)
    expected = attention_distance(weights, (3, 3))
    for grid in (3, [3, 3], np.int64(3), (np.int64(3), 3)):
        assert attention_distance(weights, grid) == expected


def test_rows_come_before_columns() -> None:
    neighbour = np.eye(6)[[1, 2, 0, 4, 5, 3]]  # of two rows of three, each looks along its row
    assert attention_distance(neighbour, (2, 3)) == pytest.approx((1 + 1 + 2) / 3)
    assert attention_distance(neighbour, (3, 2)) != pytest.approx((1 + 1 + 2) / 3)


def test_a_patch_has_a_height_and_a_width() -> None:
    below = np.eye(4)[[2, 3, 0, 1]]
    beside = np.eye(4)[[1, 0, 3, 2]]
    across = np.eye(4)[[3, 2, 1, 0]]
    for weights, expected in ((below, 3), (beside, 4), (across, 5)):
        assert attention_distance(weights, 2, patch_size=(3, 4)) == pytest.approx(expected)


@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.1, 100), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_it_grows_with_the_patch(rows: int, columns: int, size: float, seed: int) -> None:
    weights = random_weights(rows * columns, rows * columns, seed=seed)
    unit = attention_distance(weights, (rows, columns))
    assert 0 <= unit <= math.dist((0, 0), (rows - 1, columns - 1)) + 1e-12
    for patch_size in (size, (size, size)):
        got = attention_distance(weights, (rows, columns), patch_size=patch_size)
        np.testing.assert_allclose(got, size * unit)


def test_it_grows_with_the_patch_for_text_too() -> None:
    weights = random_weights(5, 5)
    expected = 2.5 * attention_distance(weights)
    np.testing.assert_allclose(attention_distance(weights, patch_size=2.5), expected)


def test_a_text_is_a_row_of_patches() -> None:
    weights = random_weights(5, 5)
    expected = attention_distance(weights, (1, 5), patch_size=(3, 4))
    assert attention_distance(weights, patch_size=(3, 4)) == expected
    assert attention_distance(weights, patch_size=4) == expected


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_a_turned_picture_has_the_same(rows: int, columns: int, prefix: int, seed: int) -> None:
    tokens = rows * columns + prefix
    weights = random_weights(tokens, tokens, seed=seed)
    turned = np.arange(rows * columns).reshape(rows, columns).T.ravel() + prefix
    order = [*range(prefix), *turned]
    np.testing.assert_allclose(
        attention_distance(
            weights[np.ix_(order, order)],
            (columns, rows),
            patch_size=(2, 7),
            prefix_tokens=prefix,
        ),
        attention_distance(weights, (rows, columns), patch_size=(7, 2), prefix_tokens=prefix),
    )


@pytest.mark.parametrize("tokens", [1, 2, 10, 197])
def test_even_attention_to_a_text(tokens: int) -> None:
    expected = (tokens**2 - 1) / (3 * tokens)
    np.testing.assert_allclose(attention_distance(even_weights(tokens, tokens)), expected)


@pytest.mark.parametrize("tokens", [1, 2, 10, 197])
def test_even_attention_to_what_is_before(tokens: int) -> None:
    np.testing.assert_allclose(attention_distance(causal_weights(tokens)), (tokens - 1) / 4)


def test_a_token_is_not_far_from_itself() -> None:
    np.testing.assert_array_equal(attention_distance(np.stack([np.eye(6)] * 2), (2, 3)), [0, 0])


def test_what_goes_to_the_prefix_does_not_count() -> None:
    patches = random_weights(4, 4)
    weights = np.zeros((6, 6))
    weights[:2] = random_weights(2, 6, seed=1)
    shares = np.array([0.0, 0.2, 0.7, 0.99])[:, None]
    weights[2:, :2] = shares / 2
    weights[2:, 2:] = patches * (1 - shares)
    np.testing.assert_allclose(
        attention_distance(weights, 2, prefix_tokens=2), attention_distance(patches, 2)
    )


@pytest.mark.filterwarnings("error")
def test_queries_that_see_the_prefix_alone_are_left_out() -> None:
    weights = np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0], [0.5, 0.5, 0, 0]])
    assert attention_distance(weights, (1, 3), prefix_tokens=1) == pytest.approx((1 + 2) / 2)


@pytest.mark.filterwarnings("error")
def test_a_head_that_sees_the_prefix_alone_has_no_distance() -> None:
    sink = np.eye(5)[[0] * 5]
    got = attention_distance([sink, even_weights(5, 5)], 2, prefix_tokens=1)
    np.testing.assert_allclose(got, [float("nan"), (2 + math.sqrt(2)) / 4])


def test_a_thousand_keys_of_float16() -> None:
    exact = random_weights(2, 1025, 1025, spread=4)
    got = attention_distance(exact.astype(np.float16), 32, patch_size=16, prefix_tokens=1)
    assert got.dtype == np.float32
    expected = attention_distance(exact, 32, patch_size=16, prefix_tokens=1)
    np.testing.assert_allclose(got, expected, rtol=1e-3)


@pytest.mark.parametrize("shape", [(2, 3), (4, 2, 3), (1, 4)])
def test_cross_attention_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="as many queries as keys") as caught:
        attention_distance(even_weights(*shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("function", [attention_distance, specialization])
@pytest.mark.parametrize("grid", [None, 2, (1, 5)])
@pytest.mark.parametrize("prefix", [-1, 4, 9])
def test_a_prefix_that_leaves_no_token_is_refused(
    function: Callable[..., Any], grid: Any, prefix: int
) -> None:
    with pytest.raises(OutOfRangeError) as caught:
        function(even_weights(4, 4), grid, prefix_tokens=prefix)
    assert str(caught.value) == f"prefix_tokens is {prefix}, and there are 4 tokens in all"


@pytest.mark.parametrize("shape", [(4,), (), (0, 0)])
def test_fewer_than_two_axes_or_an_empty_one_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(…, query, key\)") as caught:
        attention_distance(np.ones(shape))
    assert f"has shape {shape}" in str(caught.value)


def test_scores_are_refused() -> None:
    with pytest.raises(NotWeightsError, match="negative values, down to -2"):
        attention_distance([[3.0, -2.0], [0.0, 1.0]])
