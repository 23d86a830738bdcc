"""The maps of the steps of a generation are the map of all its tokens."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.attention import reference
from tests.attention.generation import LAYOUTS, Generation, numbered
from tests.attention.reference import map_of, random_call
from visualizer.attention import AttentionMap, Mask, join_steps
from visualizer.errors import (
    MapRefusedError,
    MapTooLargeError,
    NotStepsError,
    OutOfRangeError,
    OverwrittenError,
    VisualizerError,
)

CLOSE = {"rtol": 0, "atol": 2e-6}
FORMS = ("calls", "rows", "both")

EVERY = pytest.mark.parametrize(
    ("made", "form"),
    [
        pytest.param(made, form, id=f"{name}-{form}")
        for (name, made), form in itertools.product(LAYOUTS.items(), FORMS)
    ],
)


@EVERY
def test_the_whole_map(made: Generation, form: str) -> None:
    m, expected = join_steps(made.maps(form)), made.whole()
    assert m.shape == expected.shape
    assert m.dtype == (np.float64 if made.query.dtype == torch.float64 else np.float32)
    np.testing.assert_allclose(np.asarray(m), expected, **CLOSE)
    np.testing.assert_allclose(m.weights(head=3, item=1), expected[1, 3], **CLOSE)
    rows = np.concatenate([block.weights for block in m.blocks(max_bytes=500)], axis=1)
    items = np.split(rows, 2, axis=1)
    np.testing.assert_allclose(np.stack(items), expected, **CLOSE)


@EVERY
def test_statistics(made: Generation, form: str) -> None:
    m, expected = join_steps(made.maps(form)), made.whole()
    np.testing.assert_allclose(m.entropy(), reference.entropy(expected), rtol=0, atol=1e-5)
    np.testing.assert_allclose(m.received(), reference.received(expected), **CLOSE)
    np.testing.assert_allclose(m.mass([0, 2]), expected[..., [0, 2]].sum(-1), **CLOSE)
    for count in (1, 3, m.shape[3]):
        indices, weights = m.top_keys(count)
        np.testing.assert_allclose(weights, -np.sort(-expected)[..., :count], **CLOSE)
        at_them = np.take_along_axis(expected, indices, -1)
        np.testing.assert_allclose(weights, at_them, **CLOSE)
        assert all(len(set(row)) == count for row in indices.reshape(-1, count).tolist())
    tokens = np.arange(expected.shape[-1])
    apart = np.abs(tokens - tokens[:, None])
    with np.errstate(invalid="ignore"):
        of_rows = (expected * apart).sum(-1) / expected.sum(-1)
    np.testing.assert_allclose(m.distance(), np.nanmean(of_rows, -1), rtol=0, atol=1e-5)
    assert m.is_causal is True


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["dynamic", "static, in chunks", "sliding, in chunks"])
def test_any_part(name: str, form: str) -> None:
    m, expected = join_steps(LAYOUTS[name].maps(form)), LAYOUTS[name].whole()
    tokens = m.shape[2]
    indices: list[Any] = [
        (0, 3, 4),
        (..., 2),
        (slice(None), 1, slice(2, 8, 3), slice(None, None, -2)),
        (1, [3, 0, 3], slice(-3, None)),
        (0, slice(1, 3), [tokens - 1, 0, 5], [2, 1, 2]),
        (0, 0, np.arange(tokens) % 2 == 0),
        (0, 0, slice(3, 3)),
        (slice(None), slice(None), slice(None), -1),
    ]
    for index in indices:
        found, wanted = m[index], expected[index]
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, **CLOSE)
    for place in (0, 4, tokens - 1):
        np.testing.assert_allclose(m.row(place, head=2), expected[:, 2, place], **CLOSE)
        np.testing.assert_allclose(m.column(place, item=1), expected[1, ..., place], **CLOSE)
    with pytest.raises(OutOfRangeError):
        m[0, 0, tokens]


def test_log_sum_exp_where_all_steps_have_scores() -> None:
    made = LAYOUTS["static, in chunks"]
    expected = np.concatenate([reference.logsumexp(call) for call in made.calls()], axis=2)
    m = join_steps(made.maps("calls"))
    np.testing.assert_allclose(m.logsumexp(), expected, rtol=0, atol=1e-5)
    with pytest.raises(MapRefusedError, match="keep='qk'"):
        join_steps(made.maps("both")).logsumexp()


def test_what_is_known_of_it() -> None:
    maps = LAYOUTS["dynamic"].maps()
    m = join_steps(maps)
    assert (m.module_path, m.layer, m.call, m.step) == ("blocks.3.attn", 3, 0, 0)
    assert (m.source, m.confirmed, len(m)) == ("sdpa", True, 2)
    assert repr(m) == "<AttentionMap 2×4×9×9, 'blocks.3.attn', layer 3, sdpa, confirmed>"
    maps[2].record.source = "eager"  # type: ignore[misc]
    maps[3].record.confirmed = None  # type: ignore[misc]
    assert (m.source, m.confirmed) == ("joined", None)
    maps[4].record.confirmed = False  # type: ignore[misc]
    assert m.confirmed is False


def test_one_of_several_generations() -> None:
    first, second = LAYOUTS["dynamic"].maps(), LAYOUTS["in chunks"].maps()
    for number, each in enumerate(second):
        each.record.call = each.record.step = len(first) + number  # type: ignore[misc]
    both = first + second
    m = join_steps(both[len(first) :])
    np.testing.assert_allclose(np.asarray(m), LAYOUTS["in chunks"].whole(), **CLOSE)
    assert (m.call, m.step) == (5, 5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["dynamic", "static", "sliding", "static sliding"])
def test_tokens_that_the_cache_had_before(layout: str, form: str) -> None:
    window = 4 if "sliding" in layout else None
    made = Generation([3, 1, 1], layout, past=6, window=window)
    m, expected = join_steps(made.maps(form), past=6), made.whole()
    assert m.shape == (2, 4, 5, 11)
    np.testing.assert_allclose(np.asarray(m), expected, **CLOSE)
    np.testing.assert_allclose(m.entropy(), reference.entropy(expected), rtol=0, atol=1e-5)
    np.testing.assert_allclose(m.column(7), expected[..., 7], **CLOSE)
    assert m.is_causal is True


@pytest.mark.parametrize("form", FORMS)
def test_a_map_that_looks_ahead(form: str) -> None:
    """Some models let the tokens of a picture see each other."""
    call = random_call(queries=5, keys=5)
    prompt = map_of(torch.from_numpy(map_of(call).weights()) if form == "rows" else call)
    step = numbered(random_call(queries=1, keys=6), 1)
    m = join_steps([prompt, step])
    assert m.is_causal is False
    np.testing.assert_allclose(m[:, :, :5, :5], reference.whole_map(call), **CLOSE)
    assert not m[:, :, :5, 5].any()


def test_a_piece_of_a_sliding_prompt_that_looks_ahead() -> None:
    steps = [random_call(queries=6, keys=6, mask=Mask(causal=0)), random_call(queries=3, keys=6)]
    m = join_steps([numbered(call, number) for number, call in enumerate(steps)])
    assert m.shape == (2, 4, 9, 9)
    assert m.is_causal is False


def test_what_a_step_alone_would_call_causal() -> None:
    """Before a static cache is full, its queries are not those of the last keys."""
    ahead = torch.arange(8) <= (torch.arange(4).unsqueeze(-1) + 2).clamp(max=3)
    call = random_call(queries=4, keys=8, mask=Mask.from_tensor(ahead))
    assert map_of(call).is_causal is True
    for known in (True, None):
        m = join_steps([numbered(call, 0, is_causal=known)])
        assert m.shape == (2, 4, 4, 4)
        assert m.is_causal is False


def test_rows_that_are_even_over_places_that_are_not_filled() -> None:
    """As eager attention leaves padding: what they give to these places is left out."""
    seen = torch.arange(8) <= torch.arange(4).unsqueeze(-1)
    seen[:2] = False
    call = random_call(queries=4, keys=8, mask=Mask(visible=seen[None, None], hidden=-1e38))
    whole = reference.whole_map(call)[..., :4]
    np.testing.assert_allclose(whole[:, :, :2], 1 / 8)
    for held in (call, torch.from_numpy(map_of(call).weights())):
        m = join_steps([numbered(held, 0), numbered(random_call(queries=1, keys=5), 1)])
        np.testing.assert_allclose(m[:, :, :4, :4], whole, **CLOSE)
        entropy = m.entropy()[:, :, :4]
        np.testing.assert_allclose(entropy, reference.entropy(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_cross_attention(form: str) -> None:
    calls = [random_call(queries=size, keys=9) for size in (3, 1, 1)]
    expected = np.concatenate([reference.whole_map(call) for call in calls], axis=2)
    maps = [numbered(call, number) for number, call in enumerate(calls)]
    if form != "calls":
        maps[form == "both" :] = [
            numbered(torch.from_numpy(each.weights()), each.call) for each in maps[form == "both" :]
        ]
    m = join_steps(maps, cross=True)
    assert m.shape == (2, 4, 5, 9)
    np.testing.assert_allclose(np.asarray(m), expected, **CLOSE)
    np.testing.assert_allclose(m.received(), reference.received(expected), **CLOSE)
    with pytest.raises(NotStepsError, match="cross=True"):
        join_steps(maps)


def test_maps_of_arrays() -> None:
    """They have no numbers, so their order is taken as it is."""
    made = LAYOUTS["sliding"]
    steps = [AttentionMap.from_weights(each.weights()) for each in made.maps()]
    np.testing.assert_allclose(np.asarray(join_steps(steps)), made.whole(), **CLOSE)
    assert join_steps(steps).confirmed is None


def test_a_tensor_that_is_overwritten_is_noticed_when_it_is_read() -> None:
    made = LAYOUTS["static"]
    maps = made.maps()
    m = join_steps(maps)
    maps[2].record.read().key.add_(1)
    for read in (m.entropy, lambda: m[0, 0, 0], lambda: join_steps(maps).row(0)):
        with pytest.raises(OverwrittenError):
            read()
    assert join_steps(maps).shape == m.shape


def test_nothing_is_made_of_the_size_of_the_map() -> None:
    size = 20000
    one = reference.normal(1, 1, size + 1, 4)
    prompt = reference.AttentionCall(one[:, :, :size], one[:, :, :size], 0.1, reference.Mask(0))
    step = reference.AttentionCall(one[:, :, size:], one, 0.1)
    m = join_steps([numbered(prompt, 0), numbered(step, 1)])
    with pytest.raises(MapTooLargeError):
        np.asarray(m)
    assert m[0, 0, -2:].shape == (2, size + 1)
    np.testing.assert_allclose(m.row(size, head=0).sum(), 1, rtol=0, atol=1e-5)


STATIC, DYNAMIC = LAYOUTS["static"], LAYOUTS["dynamic"]


def again(made: Generation, form: str = "calls") -> list[AttentionMap]:
    """Return the steps of two generations, one after the other."""
    maps = made.maps(form) + made.maps(form)
    for number, each in enumerate(maps):
        each.record.call = each.record.step = number  # type: ignore[misc]
    return maps


def cut_back(*sizes: tuple[int, int]) -> list[AttentionMap]:
    """Return steps between which tokens were taken back, as where drafts are rejected."""
    return [
        numbered(random_call(queries=queries, keys=keys), number)
        for number, (queries, keys) in enumerate(sizes)
    ]


def with_facts(number: int, **facts: Any) -> list[AttentionMap]:
    maps = DYNAMIC.maps()
    for name, value in facts.items():
        setattr(maps[number].record, name, value)
    return maps


STATIC_ONE = LAYOUTS["static, one token at first"]
FILLED = LAYOUTS["static, filled"]
WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nothing": (list, {}, "no map"),
    "another module": (lambda: with_facts(2, module_path="other"), {}, "several modules"),
    "other heads": (
        lambda: [*DYNAMIC.maps()[:2], *Generation([5, 1, 1], heads=2).maps()[2:]],
        {},
        r"heads \(2, 2\)",
    ),
    "a gap": (lambda: DYNAMIC.maps()[::2], {}, "call 2 .* before is call 0.*keep="),
    "the last alone": (lambda: DYNAMIC.maps()[-1:], {}, "not kept"),
    "backwards": (lambda: DYNAMIC.maps()[::-1], {}, "follow each other"),
    "steps that decrease": (lambda: with_facts(3, step=1), {}, r"step 1\).*step 2"),
    "twice": (lambda: [join_steps(DYNAMIC.maps())], {}, "joined already"),
    "two generations": (lambda: again(DYNAMIC), {}, "another generation"),
    "two generations, rows": (lambda: again(DYNAMIC, "rows"), {}, "another generation"),
    "two, static": (lambda: again(STATIC), {}, "another generation"),
    "two, static, rows": (lambda: again(STATIC, "rows"), {}, "another generation"),
    "two, static, one token": (lambda: again(STATIC_ONE), {}, "another generation"),
    "two, static, one token, rows": (lambda: again(STATIC_ONE, "rows"), {}, "another generation"),
    "two, filled": (lambda: again(FILLED), {}, "another generation"),
    "two, filled, rows": (lambda: again(FILLED, "rows"), {}, "another generation"),
    "two, sliding": (lambda: again(LAYOUTS["sliding"]), {}, "another generation"),
    "two, static sliding": (
        lambda: again(LAYOUTS["static sliding, short prompt"], "rows"),
        {},
        "another generation",
    ),
    "tokens taken back": (
        lambda: cut_back((6, 6), (3, 9), (3, 10), (3, 12)),
        {},
        "take tokens back",
    ),
    "tokens taken back at the end": (
        lambda: cut_back((6, 6), (3, 9), (2, 7)),
        {},
        "take tokens back",
    ),
    "cross-attention": (
        lambda: [map_of(random_call(queries=5, keys=3))],
        {},
        "cross=True",
    ),
    "cross-attention with other keys": (DYNAMIC.maps, {"cross": True}, "without cross=True"),
    "past not told": (lambda: Generation([3, 1, 1], past=6).maps(), {}, "past=…"),
    "past not told, rows": (lambda: Generation([3, 1], past=6).maps("rows"), {}, "past=…"),
    "past not told, static": (
        lambda: Generation([3, 1, 1], "static", past=6).maps("both"),
        {},
        "past=…",
    ),
    "no past": (DYNAMIC.maps, {"past": 2}, "sees none of the 2 tokens"),
    "no past, static": (STATIC.maps, {"past": 2}, "no weight to its own"),
    "too little past": (lambda: Generation([3, 1, 1], past=6).maps(), {"past": 5}, "behind"),
    "too much past": (
        lambda: Generation([3, 1, 1], past=6).maps(),
        {"past": 7},
        "keys of all of them",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_generation(name: str) -> None:
    make, options, says = WRONG[name]
    with pytest.raises(NotStepsError, match=says) as caught:
        join_steps(make(), **options)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("past", [-1, True])
def test_past_is_a_number_of_tokens(past: Any) -> None:
    with pytest.raises(OutOfRangeError, match="number of tokens"):
        join_steps(DYNAMIC.maps(), past=past)


def test_past_means_nothing_to_cross_attention() -> None:
    with pytest.raises(OutOfRangeError, match="0 with cross=True"):
        join_steps(DYNAMIC.maps(), past=2, cross=True)


def test_something_else_than_maps() -> None:
    with pytest.raises(TypeError, match="from_weights"):
        join_steps([np.eye(3)])  # type: ignore[list-item]
    with pytest.raises(TypeError) as caught:
        join_steps(DYNAMIC.maps(), past=1.5)  # type: ignore[arg-type]
    assert not isinstance(caught.value, VisualizerError)


def test_numbers_of_numpy_are_numbers() -> None:
    made = Generation([3, 1], past=2)
    assert join_steps(made.maps(), past=np.int64(2)).shape == (2, 4, 4, 6)  # type: ignore[arg-type]
