"""Statistics of lazy maps of every mask, against their definitions in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")

from tests.analysis import by_definition as defined  # noqa: E402
from tests.analysis.by_definition import for_each_head  # noqa: E402
from tests.attention.masks import MASKS  # noqa: E402
from tests.attention.reference import map_of, random_call, visible_keys, whole_map  # noqa: E402
from visualizer import analysis  # noqa: E402
from visualizer.analysis import largest, rows, similarity  # noqa: E402
from visualizer.attention import AttentionMap  # noqa: E402

TOKENS = [3, 1, 3, -1, 1, 3, -1, 1, 2]
TEXTS = [TOKENS, [0, 1, 2, 3, 0, 1, 2, 3, 0]]

STATISTICS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "effective support": (
        analysis.effective_support,
        lambda w: for_each_head(defined.effective_support, w),
    ),
    "top mass": (
        lambda m: analysis.top_mass(m, 3),
        lambda w: for_each_head(defined.top_mass, w, k=3),
    ),
    "confidence": (analysis.confidence, lambda w: for_each_head(defined.confidence, w)),
    "confidence, without two": (
        lambda m: analysis.confidence(m, exclude=[0, -1]),
        lambda w: for_each_head(defined.confidence, w, exclude=(0, 8)),
    ),
    "previous token": (
        analysis.previous_token_score,
        lambda w: for_each_head(defined.at_offset, w, offset=1),
    ),
    "next token": (
        lambda m: analysis.previous_token_score(m, offset=-1),
        lambda w: for_each_head(defined.at_offset, w, offset=-1),
    ),
    "previous token, maxima": (
        lambda m: analysis.previous_token_score(m, maxima=True),
        lambda w: for_each_head(defined.at_offset, w, offset=1, maxima=True),
    ),
    "profile": (
        analysis.positional_profile,
        lambda w: for_each_head(defined.profile, w, reach=8),
    ),
    "profile, near": (
        lambda m: analysis.positional_profile(m, reach=2),
        lambda w: for_each_head(defined.profile, w, reach=2),
    ),
    "induction, period": (
        lambda m: analysis.induction_score(m, period=3, prefix_tokens=1),
        lambda w: for_each_head(defined.induction, w, tokens=[-1, 0, 1, 2, 0, 1, 2, 0, 1]),
    ),
    "induction, tokens": (
        lambda m: analysis.induction_score(m, tokens=TOKENS),
        lambda w: for_each_head(defined.induction, w, tokens=TOKENS),
    ),
    "induction, texts": (
        lambda m: analysis.induction_score(m, tokens=torch.tensor(TEXTS)),
        lambda w: np.stack(
            [
                for_each_head(defined.induction, item, tokens=text)
                for item, text in zip(w, TEXTS, strict=True)
            ]
        ),
    ),
    "sink mass": (analysis.sink_mass, lambda w: for_each_head(defined.sink_mass, w, sinks=1)),
    "sink mass of four": (
        lambda m: analysis.sink_mass(m, 4),
        lambda w: for_each_head(defined.sink_mass, w, sinks=4),
    ),
    "received": (analysis.received, lambda w: for_each_head(defined.received, w)),
    "head similarity": (
        analysis.head_similarity,
        lambda w: for_each_head(defined.divergence, w[:, :, None], w[:, None]),
    ),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.tensor([-1.0, 0.5, 2.0, 0.0])},
    "NaN": {"empty_rows": float("nan")},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "as many queries": {"queries": 9, "keys": 9},
}

every_mask = pytest.mark.parametrize("mask", list(MASKS))
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Maps this small take longer with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are taken two at a time, and compared one by one."""
    monkeypatch.setattr(rows, "_BLOCK_BYTES", 4 * 9 * 4 * 2)
    monkeypatch.setattr(similarity, "_CACHED_BYTES", 1)
    monkeypatch.setattr(largest, "_FEW", 2)


def call_with(mask: str, options: dict[str, Any]) -> Any:
    kept = MASKS[mask]
    parts = (*(kept.spans or ()), kept.visible, kept.bias)
    if "queries" in options and any(part is not None and 7 in part.shape for part in parts):
        pytest.skip("this mask is made for 7 queries, and these are fewer or more")
    return random_call(mask=kept, **options)


def check_all(call: Any) -> None:
    expected = whole_map(call)
    for name, (statistic, definition) in STATISTICS.items():
        got, wanted = statistic(map_of(call)), definition(expected)
        assert got.dtype == (np.float64 if call.query.dtype == torch.float64 else np.float32), name
        assert got.shape == wanted.shape, name
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-9, err_msg=name)


@every_mask
@every_option
def test_lazy_maps_are_as_defined(mask: str, options: dict[str, Any]) -> None:
    check_all(call_with(mask, options))


@every_mask
@pytest.mark.usefixtures("small_blocks")
def test_the_size_of_blocks_does_not_matter(mask: str) -> None:
    check_all(call_with(mask, {"sinks": torch.tensor([-1.0, 0.5, 2.0, 0.0])}))


@pytest.mark.parametrize("relative_to", ["maximum", "even", "row"])
@every_mask
@every_option
def test_sparsity_counts_visible_keys(mask: str, options: dict[str, Any], relative_to: Any) -> None:
    call = call_with(mask, options)
    visible = visible_keys(call.mask, call.shape)
    if call.mask.bias is not None:
        visible = visible & (call.mask.bias.double().numpy() > -1e4)
    for threshold in (0.3, 0.07):
        wanted = for_each_head(
            defined.sparsity, whole_map(call), visible, threshold=threshold, relative_to=relative_to
        )
        got = analysis.sparsity(map_of(call), threshold, relative_to=relative_to)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_weights_that_gave_to_a_sink_are_not_scaled() -> None:
    """Rows of an array sum to 1; those of a map that keeps its weights may sum to less."""
    call = random_call(sinks=torch.tensor([3.0, 4.0, 5.0, 6.0]), dtype=torch.float64)
    expected = whole_map(call)
    assert expected.sum(axis=-1).max() < 0.98
    kept = map_of(torch.from_numpy(expected))
    for name, (statistic, definition) in STATISTICS.items():
        np.testing.assert_allclose(statistic(kept), definition(expected), 1e-9, err_msg=name)


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_peaked_maps_of_many_keys(mask: str) -> None:
    """Where a fused kernel's entropy is off by 1e-5 nats."""
    options: Any = {"batch": 1, "queries": 1024, "keys": 1024, "dim": 64, "scale": 0.5}
    call = random_call(mask=MASKS[mask], **options)
    expected = whole_map(call)[:, :, ::64]
    wanted = for_each_head(defined.effective_support, expected)
    got = analysis.effective_support(map_of(call))[:, :, ::64]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("empty_rows", [0.0, float("nan")])
def test_queries_that_see_nothing_do_not_count_in_kept_weights(empty_rows: float) -> None:
    expected = whole_map(random_call(mask=MASKS["causal, empty rows"], empty_rows=empty_rows))
    kept = map_of(torch.from_numpy(expected))
    for name, (statistic, definition) in STATISTICS.items():
        got = statistic(kept)
        np.testing.assert_allclose(got, definition(expected), 1e-9, 1e-15, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded_weights_are_scaled_to_sum_to_1(dtype: str) -> None:
    rounded = torch.from_numpy(whole_map(random_call())).to(getattr(torch, dtype))
    array = rounded.double().numpy()
    exact = array / array.sum(axis=-1, keepdims=True)
    for given in (AttentionMap.from_weights(rounded), rounded):
        for name, (statistic, definition) in STATISTICS.items():
            got = statistic(given)
            np.testing.assert_allclose(got, definition(exact), 1e-5, 1e-9, err_msg=name)
