"""Statistics of arrays, against their definitions; what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")

from tests.analysis import by_definition as defined  # noqa: E402
from tests.analysis.by_definition import for_each_head  # noqa: E402
from tests.analysis.weights import (  # noqa: E402
    causal_weights,
    drawn_weights,
    even_weights,
    random_weights,
)
from visualizer.analysis import (  # noqa: E402
    confidence,
    effective_support,
    head_similarity,
    induction_score,
    positional_profile,
    previous_token_score,
    received,
    sink_mass,
    sparsity,
    top_mass,
)
from visualizer.errors import NotWeightsError, OutOfRangeError, ShapeError  # noqa: E402

EVERY: dict[str, Any] = {
    "effective support": effective_support,
    "top mass": lambda w: top_mass(w, 1),
    "sparsity": sparsity,
    "confidence": confidence,
    "previous token": previous_token_score,
    "profile": positional_profile,
    "induction": lambda w: induction_score(w, period=1),
    "sink mass": sink_mass,
    "received": received,
    "head similarity": head_similarity,
}

each_one = pytest.mark.parametrize("function", EVERY.values(), ids=list(EVERY))


def close(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-13)


@given(drawn_weights(leading=2))
@settings(max_examples=40, deadline=None)
def test_effective_support(weights: Any) -> None:
    close(effective_support(weights), for_each_head(defined.effective_support, weights))


def test_even_attention_is_supported_by_all_keys() -> None:
    close(effective_support(even_weights(3, 4, 7)), np.full((3, 4), 7))
    close(effective_support(causal_weights(5)), [1, 2, 3, 4, 5])


@given(drawn_weights(leading=1), st.data())
@settings(max_examples=40, deadline=None)
def test_top_mass(weights: Any, data: Any) -> None:
    k = data.draw(st.integers(1, weights.shape[-1]))
    close(top_mass(weights, k), for_each_head(defined.top_mass, weights, k=k))
    close(top_mass(weights, weights.shape[-1]), 1)


@given(drawn_weights(leading=2))
@settings(max_examples=40, deadline=None)
def test_confidence(weights: Any) -> None:
    close(confidence(weights), for_each_head(defined.confidence, weights))
    last = weights.shape[-1] - 1
    if last:
        wanted = for_each_head(defined.confidence, weights, exclude=(last,))
        close(confidence(weights, exclude=-1), wanted)
        close(confidence(weights, exclude=np.arange(last + 1) == last), wanted)


@pytest.mark.parametrize("relative_to", ["maximum", "even", "row"])
@pytest.mark.parametrize("threshold", [0.0, 0.013, 0.31, 0.77])
def test_sparsity(threshold: float, relative_to: Any) -> None:
    weights = random_weights(2, 3, 6, 9)
    options: Any = {"threshold": threshold, "relative_to": relative_to}
    visible = np.ones((6, 9), bool)
    wanted = for_each_head(defined.sparsity, weights, visible, **options)
    np.testing.assert_array_equal(sparsity(weights, **options), wanted)
    visible = np.tri(6, 9, 3, dtype=bool)
    weights = weights * visible / (weights * visible).sum(axis=-1, keepdims=True)
    wanted = for_each_head(defined.sparsity, weights, visible, **options)
    np.testing.assert_array_equal(sparsity(weights, causal=True, **options), wanted)


def test_sparsity_is_by_one_percent_of_the_maximum_unless_said() -> None:
    row = np.array([[0.9, 0.0089, 0.0091, 0.082]])
    np.testing.assert_array_equal(sparsity(row), [0.25])


def test_a_hidden_key_is_no_sparsity() -> None:
    weights = causal_weights(6)
    np.testing.assert_array_equal(sparsity(weights, causal=True), np.zeros(6))
    np.testing.assert_allclose(sparsity(weights), (5 - np.arange(6)) / 6)


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (3, 4, 6), (1, 6)])
@pytest.mark.parametrize("offset", [-3, -1, 0, 1, 2, 5])
def test_attention_at_an_offset(shape: tuple[int, ...], offset: int) -> None:
    weights = random_weights(*shape)
    if shape[-2] == 1 and offset < 0:
        with pytest.raises(OutOfRangeError, match=rf"offset is {offset}; .* 0 to 5"):
            previous_token_score(weights, offset=offset)
        return
    for maxima in (False, True):
        wanted = for_each_head(defined.at_offset, weights, offset=offset, maxima=maxima)
        close(previous_token_score(weights, offset=offset, maxima=maxima), wanted)


def test_a_previous_token_head() -> None:
    weights = np.eye(6)[[0, 0, 1, 2, 3, 4]]
    assert previous_token_score(weights) == 1
    assert previous_token_score(weights, offset=0) == pytest.approx(1 / 6)
    assert previous_token_score(weights * 0.6 + 0.4 / 6) == pytest.approx(0.6 + 0.4 / 6)
    assert previous_token_score(weights * 0.6 + 0.4 / 6, maxima=True) == 1


@given(drawn_weights(square=True, leading=1))
@settings(max_examples=40, deadline=None)
def test_profile(weights: Any) -> None:
    reach = weights.shape[-1] - 1
    wanted = for_each_head(defined.profile, weights, reach=reach)
    close(positional_profile(weights), wanted)
    for less in range(reach):
        part = slice(reach - less, reach + less + 1)
        close(positional_profile(weights, reach=less), wanted[..., part])


def test_profile_of_the_last_queries() -> None:
    weights = random_weights(3, 2, 7)
    got = positional_profile(weights)
    close(got, for_each_head(defined.profile, weights, reach=6))
    assert np.isnan(got).all(axis=0).tolist() == [False] * 8 + [True] * 5


def test_the_profile_holds_the_scores_of_all_offsets() -> None:
    weights = random_weights(2, 5, 5)
    for offset in range(-4, 5):
        close(
            positional_profile(weights)[..., 4 - offset],
            previous_token_score(weights, offset=offset),
        )


@given(drawn_weights(square=True, leading=1), st.data())
@settings(max_examples=60, deadline=None)
def test_induction_of_any_text(weights: Any, data: Any) -> None:
    size = weights.shape[-1]
    tokens = data.draw(st.lists(st.integers(-1, 2), min_size=size, max_size=size))
    got = induction_score(weights, tokens=tokens)
    close(got, for_each_head(defined.induction, weights, tokens=tokens))


@pytest.mark.parametrize(("period", "prefix"), [(1, 0), (3, 0), (4, 1), (2, 3), (8, 0)])
def test_induction_of_a_repeated_block(period: int, prefix: int) -> None:
    weights = random_weights(2, 9, 9)
    tokens = [-1] * prefix + [place % period for place in range(9 - prefix)]
    got = induction_score(weights, period=period, prefix_tokens=prefix)
    close(got, for_each_head(defined.induction, weights, tokens=tokens))


def test_an_induction_head() -> None:
    looked_at = [0, 1, 2, 3, 1, 2, 3, 4]  # from 4 on, what followed 4 tokens before
    weights = np.eye(8)[looked_at]
    assert induction_score(weights, period=4) == 1
    assert induction_score(weights[4:], period=4) == 1
    assert induction_score(weights, tokens=[7, 5, 6, 9, 7, 5, 6, 9]) == 1
    assert np.isnan(induction_score(weights, tokens=range(8)))


def test_each_text_of_a_batch_has_its_tokens() -> None:
    weights = random_weights(3, 2, 4, 6, 6)
    texts = [[0, 1, 0, 1, 0, 1], [4, 4, 4, 5, 5, 5]]
    got = induction_score(weights, tokens=np.array(texts, np.int32))
    for item, text in enumerate(texts):
        close(got[:, item], induction_score(weights[:, item], tokens=text))


@given(drawn_weights(leading=2))
@settings(max_examples=40, deadline=None)
def test_received_and_sinks(weights: Any) -> None:
    wanted = for_each_head(defined.received, weights)
    close(received(weights), wanted)
    for sinks in range(1, weights.shape[-1] + 1):
        close(sink_mass(weights, sinks), wanted[..., :sinks].sum(axis=-1))


@given(drawn_weights(leading=2))
@settings(max_examples=40, deadline=None)
def test_divergence_of_heads(weights: Any) -> None:
    got = head_similarity(weights)
    wanted = for_each_head(defined.divergence, weights[:, :, None], weights[:, None])
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-14)
    assert (np.diagonal(got, axis1=-2, axis2=-1) == 0).all()
    np.testing.assert_array_equal(got, np.swapaxes(got, -1, -2))


def test_divergence_is_that_of_scipy() -> None:
    distance = pytest.importorskip("scipy.spatial.distance", reason="scipy is not installed")
    weights = random_weights(3, 5, 8)
    got = head_similarity(weights)
    squared = distance.jensenshannon(weights[0], weights[2], axis=-1) ** 2
    assert got[0, 2] == pytest.approx(squared.mean())


def test_heads_that_are_nearly_alike() -> None:
    """Their entropies agree to more digits than float32 has."""
    one = random_weights(1, 9, 40)
    other = one * (1 + 1e-4 * np.random.default_rng(1).normal(size=one.shape))
    weights = np.concatenate([one, other / other.sum(axis=-1, keepdims=True)]).astype(np.float32)
    wanted = for_each_head(defined.divergence, weights[0], weights[1])
    assert 0 < wanted < 1e-8
    assert head_similarity(weights)[0, 1] == pytest.approx(wanted, rel=1e-5)


def test_heads_of_all_layers() -> None:
    weights = random_weights(4, 2, 3, 5, 5)
    got = head_similarity(weights, across_layers=True)
    assert got.shape == (2, 12, 12)
    for item in range(2):
        close(got[item], head_similarity(weights[:, item].reshape(12, 5, 5)))
    close(head_similarity(weights[:, 0], across_layers=True), got[0])


@each_one
def test_leading_axes_are_kept(function: Any) -> None:
    weights = random_weights(2, 3, 4, 5, 5)
    got = function(weights)
    assert got.shape[:2] == (2, 3)
    for place in np.ndindex(2, 3):
        close(got[place], function(weights[place]))


@each_one
def test_the_type_stays(function: Any) -> None:
    weights = random_weights(2, 3, 5, 5)
    assert function(weights).dtype == np.float64
    single = function(weights.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, function(weights), rtol=1e-5)
    assert function(weights.astype(np.float16)).dtype == np.float32
    assert type(function(weights.tolist())) is np.ndarray


@each_one
def test_scores_are_refused(function: Any) -> None:
    with pytest.raises(NotWeightsError, match="sums to 6"):
        function(np.full((2, 3, 3), 2.0))


@each_one
def test_arrays_are_left_as_they_were(function: Any) -> None:
    weights = random_weights(2, 5, 5)
    before = weights.copy()
    function(weights)
    np.testing.assert_array_equal(weights, before)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "more keys than there are": (lambda w: top_mass(w, 6), OutOfRangeError, "k is 6.*1 to 5"),
    "no keys": (lambda w: top_mass(w, 0), OutOfRangeError, "k is 0"),
    "a share of keys": (lambda w: top_mass(w, 0.5), OutOfRangeError, "k is 0.5"),
    "a key that is not there": (lambda w: confidence(w, exclude=5), OutOfRangeError, "5 don't fit"),
    "a negative threshold": (lambda w: sparsity(w, -1), OutOfRangeError, "threshold is -1"),
    "NaN as threshold": (lambda w: sparsity(w, float("nan")), OutOfRangeError, "threshold is nan"),
    "no reference": (
        lambda w: sparsity(w, relative_to="max"),
        OutOfRangeError,
        "relative_to is 'max'.*'maximum', 'even', 'row'",
    ),
    "too far before": (
        lambda w: previous_token_score(w, offset=5),
        OutOfRangeError,
        "offset is 5; expected a whole number, -4 to 4",
    ),
    "half a token": (lambda w: previous_token_score(w, offset=0.5), OutOfRangeError, "0.5"),
    "too far a reach": (lambda w: positional_profile(w, reach=5), OutOfRangeError, "reach 5"),
    "nothing to go by": (induction_score, OutOfRangeError, "period is None and tokens is None"),
    "both to go by": (
        lambda w: induction_score(w, period=2, tokens=range(5)),
        OutOfRangeError,
        "period is 2 and tokens is given; expected one",
    ),
    "no repetition": (
        lambda w: induction_score(w, period=4, prefix_tokens=1),
        OutOfRangeError,
        "period is 4, and 4 tokens don't repeat it; expected 1 to 3",
    ),
    "a prefix of all": (
        lambda w: induction_score(w, period=1, prefix_tokens=5),
        OutOfRangeError,
        "prefix_tokens is 5",
    ),
    "a prefix of tokens": (
        lambda w: induction_score(w, tokens=range(5), prefix_tokens=1),
        OutOfRangeError,
        "ids below 0",
    ),
    "too few tokens": (
        lambda w: induction_score(w, tokens=range(4)),
        ShapeError,
        r"tokens has shape \(1, 4\); expected \(5,\) or \(1, 5\)",
    ),
    "too many texts": (lambda w: induction_score(w, tokens=[[1] * 5] * 3), ShapeError, "batch of"),
    "words": (lambda w: induction_score(w, tokens=list("abcab")), ShapeError, "whole numbers"),
    "no first tokens": (lambda w: sink_mass(w, 0), OutOfRangeError, "sinks is 0.*1 to 5"),
    "a layer only": (
        lambda w: head_similarity(w, across_layers=True),
        ShapeError,
        r"expected \(layer, …, head, query, key\)",
    ),
    "a head only": (lambda w: head_similarity(w[0]), ShapeError, r"expected \(…, head, query"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(name: str) -> None:
    function, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        function(random_weights(3, 5, 5))


@pytest.mark.parametrize(
    "function",
    [
        previous_token_score,
        positional_profile,
        lambda w: induction_score(w, period=1),
        lambda w: sparsity(w, causal=True),
    ],
)
def test_queries_without_a_place_are_refused(function: Any) -> None:
    with pytest.raises(ShapeError, match="5 queries and 3 keys"):
        function(random_weights(2, 5, 3))
