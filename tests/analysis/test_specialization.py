"""Four numbers for each head, against loops, and for heads that are known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")

from tests.analysis.weights import causal_weights, even_weights, random_weights  # noqa: E402
from visualizer.analysis import HeadStatistics, specialization  # noqa: E402
from visualizer.errors import NotWeightsError, ShapeError  # noqa: E402

FIELDS = ["entropy", "distance", "prefix_mass", "diagonal_mass"]


def numbers(statistics: HeadStatistics) -> Any:
    """Stack the four, in order, at the end."""
    return np.stack([getattr(statistics, name) for name in FIELDS], axis=-1)


def from_definition(weights: list[list[float]], columns: int, prefix: int) -> list[float]:
    """Compute the four for one head on a grid, in loops."""
    tokens = range(len(weights))
    spreads = [-sum(w * math.log(w) for w in row) / math.log(len(row)) for row in weights]
    distances = []
    for query in tokens[prefix:]:
        here = divmod(query - prefix, columns)
        far = [math.dist(here, divmod(key - prefix, columns)) for key in tokens[prefix:]]
        row = weights[query][prefix:]
        distances.append(sum(w * d for w, d in zip(row, far, strict=True)) / sum(row))
    before = [sum(row[:prefix]) for row in weights]
    itself = [weights[token][token] for token in tokens]
    return [sum(values) / len(values) for values in (spreads, distances, before, itself)]


@pytest.mark.parametrize(("grid", "prefix"), [((2, 3), 1), ((3, 2), 0), ((1, 4), 3)])
def test_they_are_the_four_means(grid: tuple[int, int], prefix: int) -> None:
    tokens = grid[0] * grid[1] + prefix
    weights = random_weights(2, 3, tokens, tokens)
    got = specialization(weights, grid, prefix_tokens=prefix)
    expected = [[from_definition(head, grid[1], prefix) for head in w] for w in weights.tolist()]
    assert got.entropy.shape == (2, 3)
    np.testing.assert_allclose(numbers(got), expected, rtol=1e-12)


def test_heads_of_a_picture_that_are_known() -> None:
    heads = [even_weights(5, 5), np.eye(5), np.eye(5)[[0, 2, 1, 4, 3]], np.eye(5)[[0] * 5]]
    got = numbers(specialization(heads, 2, prefix_tokens=1))
    nan = float("nan")
    np.testing.assert_allclose(
        got,
        [
            [1, (2 + math.sqrt(2)) / 4, 0.2, 0.2],
            [0, 0, 0.2, 1],
            [0, 1, 0.2, 0.2],
            [0, nan, 1, 0.2],
        ],
    )


def test_heads_of_a_text_that_are_known() -> None:
    before = np.eye(4)[[0, 0, 1, 2]]
    got = numbers(specialization([even_weights(4, 4), np.eye(4), before, np.eye(4)[[0] * 4]]))
    expected = [[1, 1.25, 0.25, 0.25], [0, 0, 0.25, 1], [0, 0.75, 0.5, 0.25], [0, 1.5, 1, 0.25]]
    np.testing.assert_allclose(got, expected)


def test_one_head_has_numbers_without_axes() -> None:
    weights = random_weights(7, 7)
    got = specialization(weights, 2, prefix_tokens=3)
    assert got.entropy.shape == ()
    expected = from_definition(weights.tolist(), 2, 3)
    np.testing.assert_allclose(numbers(got), expected, rtol=1e-12)


def test_a_picture_without_prefix_has_no_mass_on_it() -> None:
    assert specialization(even_weights(4, 4), 2).prefix_mass == 0
    assert specialization(even_weights(4, 4)).prefix_mass == 0.25


def test_a_text_may_have_a_longer_prefix() -> None:
    got = specialization(even_weights(5, 5), prefix_tokens=2)
    assert got.prefix_mass == pytest.approx(0.4)
    assert got.distance == pytest.approx(8 / 9)


@pytest.mark.filterwarnings("error")
def test_causal_leaves_out_the_query_that_sees_one_key() -> None:
    weights = np.stack([causal_weights(4)] * 2)
    np.testing.assert_allclose(specialization(weights, causal=True).entropy, [1, 1])
    plain = sum(math.log(seen) for seen in (1, 2, 3, 4)) / math.log(4) / 4
    np.testing.assert_allclose(specialization(weights).entropy, [plain, plain])


def test_the_result_cannot_be_changed_and_has_four_fields() -> None:
    got = specialization(even_weights(2, 2))
    assert [field.name for field in dataclasses.fields(got)] == FIELDS
    with pytest.raises(dataclasses.FrozenInstanceError):
        got.entropy = 0


def test_results_are_compared_by_identity() -> None:
    weights = random_weights(2, 3, 3)
    first, second = specialization(weights), specialization(weights)
    assert first == first
    assert first != second
    assert len({first, second, first}) == 2


@pytest.mark.filterwarnings("error")
def test_a_single_token_has_no_entropy_to_speak_of() -> None:
    got = specialization([[1.0]])
    np.testing.assert_array_equal(numbers(got), [float("nan"), 0, 1, 1])
    heads = specialization(np.ones((2, 3, 1, 1)), causal=True)
    np.testing.assert_array_equal(heads.entropy, np.full((2, 3), float("nan")))


def test_causal_refuses_what_looks_ahead() -> None:
    with pytest.raises(NotWeightsError, match=r"shape \(2, 4, 4\) are not causal"):
        specialization(even_weights(2, 4, 4), causal=True)


@pytest.mark.parametrize("shape", [(2, 3), (4, 3, 2)])
def test_cross_attention_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="as many queries as keys") as caught:
        specialization(even_weights(*shape))
    assert str(shape) in str(caught.value)


def test_another_number_of_tokens_is_refused() -> None:
    with pytest.raises(ShapeError, match="5 tokens don't fit a grid of 2×2.*prefix_tokens=1"):
        specialization(even_weights(5, 5), 2)


@pytest.mark.parametrize("shape", [(4,), ()])
def test_fewer_than_two_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(…, query, key\)"):
        specialization(np.ones(shape))


def test_scores_are_refused() -> None:
    with pytest.raises(NotWeightsError, match="negative values, down to -2"):
        specialization([[3.0, -2.0], [0.0, 1.0]])
