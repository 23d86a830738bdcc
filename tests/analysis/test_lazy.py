"""Lazy maps: the same numbers and errors as for arrays, and never more than some rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")

from tests.analysis.lazy_maps import KINDS, Watched, map_of_call  # noqa: E402
from tests.analysis.weights import random_weights  # noqa: E402
from visualizer import capture  # noqa: E402
from visualizer.analysis import (  # noqa: E402
    attention_distance,
    attention_flow,
    confidence,
    diagonal_mass,
    effective_support,
    entropy,
    head_similarity,
    induction_score,
    mass,
    positional_profile,
    previous_token_score,
    received,
    rollout,
    rows,
    sink_mass,
    sparsity,
    specialization,
    top_mass,
)
from visualizer.analysis.rollout import rollout_row  # noqa: E402
from visualizer.attention import AttentionMap, Mask  # noqa: E402
from visualizer.errors import NotWeightsError, OutOfRangeError, ShapeError  # noqa: E402

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "entropy": entropy,
    "normalized entropy": lambda w: entropy(w, normalized=True),
    "distance": attention_distance,
    "distance on a grid": lambda w: attention_distance(w, (4, 4), patch_size=2, prefix_tokens=1),
    "distance with tall patches": lambda w: attention_distance(w, None, patch_size=(1, 3)),
    "mass": lambda w: mass(w, 0),
    "mass on several": lambda w: mass(w, [0, -1, 0]),
    "mass on a slice": lambda w: mass(w, slice(0, 4, 2)),
    "mass on a mask": lambda w: mass(w, np.arange(17) % 2 == 0),
    "mass on none": lambda w: mass(w, []),
    "diagonal mass": diagonal_mass,
    "specialization, entropy": lambda w: specialization(w).entropy,
    "specialization, distance": lambda w: specialization(w).distance,
    "specialization, prefix": lambda w: specialization(w, (4, 4), prefix_tokens=1).prefix_mass,
    "specialization, diagonal": lambda w: specialization(w).diagonal_mass,
    "effective support": effective_support,
    "top mass": lambda w: top_mass(w, 4),
    "confidence": confidence,
    "previous token": previous_token_score,
    "previous token, maxima": lambda w: previous_token_score(w, maxima=True),
    "profile": positional_profile,
    "profile, near": lambda w: positional_profile(w, reach=3),
    "induction, period": lambda w: induction_score(w, period=5, prefix_tokens=2),
    "induction, tokens": lambda w: induction_score(w, tokens=[1, 2, 1, 1, 3] * 3 + [1, 3]),
    "sink mass": sink_mass,
    "received": received,
    "head similarity": head_similarity,
}

each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Maps this small take longer with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are taken three at a time, or one."""
    monkeypatch.setattr(rows, "_BLOCK_BYTES", 700)
    whole = AttentionMap.blocks
    monkeypatch.setattr(AttentionMap, "blocks", lambda self: whole(self, max_bytes=700))


def check(function: Callable[[Any], Any], given: Any, array: Any) -> None:
    """Compare with the result of the array: values, shape, type; or compare the errors."""
    try:
        expected = function(array)
    except (ShapeError, NotWeightsError, OutOfRangeError) as error:
        with pytest.raises(type(error)) as caught:
            function(given)
        assert str(caught.value) == str(error)
        return
    got = function(given)
    assert type(got) is np.ndarray
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert got.flags.writeable
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@each_kind
@each_function
def test_a_map_is_like_its_array(function: Any, make: Any) -> None:
    check(function, make(), np.asarray(make()))


@each_kind
@each_function
@pytest.mark.usefixtures("small_blocks")
def test_the_size_of_blocks_does_not_matter(function: Any, make: Any) -> None:
    check(function, make(), np.asarray(make()))


@each_function
def test_lists_of_maps_are_like_lists_of_arrays(function: Any) -> None:
    maps = [map_of_call(seed=seed) for seed in range(3)]
    arrays = [np.asarray(one) for one in maps]
    check(function, maps, arrays)
    check(function, tuple(maps), tuple(arrays))
    check(function, [[one] for one in maps], [[one] for one in arrays])
    check(function, [maps[0], arrays[1]], arrays[:2])


@each_function
def test_lists_of_unequal_maps_are_refused(function: Any) -> None:
    for values in ([map_of_call(), map_of_call(2)], [[map_of_call()], [map_of_call()] * 2]):
        with pytest.raises(ShapeError, match="can't be made an array.*one by one"):
            function(values)


@each_function
def test_mixed_types_take_the_widest(function: Any) -> None:
    maps = [map_of_call(), map_of_call(dtype=torch.float64)]
    assert function(maps).dtype == np.float64


def encoder() -> Any:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 4, batch_first=True, dropout=0)
    return torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()


def captured_maps(batch: int = 1) -> Any:
    model = encoder()
    with torch.no_grad(), capture(model) as captured:
        model(torch.randn(batch, 17, 16))
    return captured.attention


@each_function
def test_what_is_captured_is_taken_as_it_is(function: Any) -> None:
    maps = captured_maps(2)
    assert len(maps) == 3
    check(function, maps, np.stack([np.asarray(one) for one in maps]))
    check(function, maps.layers, np.stack([[np.asarray(one)] for one in maps]))
    check(function, maps[1], np.asarray(maps[1]))


@pytest.mark.parametrize(
    "function",
    [
        diagonal_mass,
        attention_distance,
        lambda w: specialization(w).entropy,
        lambda w: attention_distance(w, (4, 4)),
        lambda w: attention_distance(w, 0),
        lambda w: attention_distance(w, 4, prefix_tokens=17),
        lambda w: attention_distance(w, None, prefix_tokens=-1),
        lambda w: mass(w, 17),
        lambda w: mass(w, -18),
        lambda w: mass(w, None),
        lambda w: mass(w, True),
        lambda w: mass(w, ...),
        lambda w: mass(w, [True, False]),
        lambda w: mass(w, 1.5),
        lambda w: entropy(w, normalized=True, causal=True),
        lambda w: specialization(w, causal=True).entropy,
        lambda w: specialization(w, (3, 3)).entropy,
        lambda w: top_mass(w, 18),
        lambda w: confidence(w, exclude=17),
        lambda w: previous_token_score(w, offset=17),
        lambda w: previous_token_score(w, offset=-5),
        lambda w: positional_profile(w, reach=17),
        lambda w: induction_score(w, period=17),
        lambda w: induction_score(w, tokens=[[1] * 17] * 3),
        lambda w: sink_mass(w, 18),
        lambda w: sparsity(w, relative_to="max"),
    ],
)
@pytest.mark.parametrize("queries", [5, 17])
def test_errors_are_the_same(function: Any, queries: int) -> None:
    given = map_of_call(2, queries=queries)
    check(function, given, np.asarray(given))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("queries", [1, 4, 17])
def test_causal_entropy(queries: int) -> None:
    given = map_of_call(2, queries=queries, mask=Mask(causal=17 - queries))
    check(lambda w: entropy(w, normalized=True, causal=True), given, np.asarray(given))
    of_weights = AttentionMap.from_weights(np.asarray(given))
    check(lambda w: entropy(w, normalized=True, causal=True), of_weights, np.asarray(given))


def test_causal_forgives_rounding() -> None:
    weights = np.array([[0.985, 0.015], [0.5, 0.5]])
    given = AttentionMap.from_weights(weights)
    check(lambda w: entropy(w, normalized=True, causal=True), given, weights[None, None])


def test_rounded_rows_are_scaled_as_those_of_arrays() -> None:
    weights = random_weights(2, 2, 9, 9) * 0.985
    given = AttentionMap.from_weights(weights)
    for function in (lambda w: mass(w, 0), diagonal_mass, lambda w: mass(w, slice(None))):
        check(function, given, weights)
    assert mass(given, slice(None)).max() <= 1


def test_a_sink_s_share_is_no_key_s() -> None:
    given = map_of_call(sinks=torch.tensor([-9.0, 0.0, 3.0]))
    array = np.asarray(given)
    sums = array.sum(axis=-1)
    assert sums.min() < 0.9
    np.testing.assert_allclose(mass(given, 0), array[..., 0], atol=1e-6)
    np.testing.assert_allclose(mass(given, slice(None)), sums, atol=1e-5)
    own = np.diagonal(array, axis1=2, axis2=3)
    np.testing.assert_allclose(diagonal_mass(given), own, atol=1e-6)
    rest = array / sums[..., None]
    np.testing.assert_allclose(entropy(given), entropy(rest), atol=1e-5)
    np.testing.assert_allclose(attention_distance(given), attention_distance(rest), atol=1e-4)
    mean = array.mean(axis=1)
    expected = rollout(mean / mean.sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(rollout([given]), expected, atol=1e-6)


def padded(empty_rows: float = 0.0) -> AttentionMap:
    """A text whose first three tokens are padding: they see nothing, and nobody sees them."""
    seen = torch.ones(1, 1, 1, 17, dtype=torch.bool)
    seen[..., :3] = False
    return map_of_call(mask=Mask(causal=0, keys=seen), empty_rows=empty_rows)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("empty_rows", [0.0, float("nan")])
def test_queries_that_see_nothing_do_not_count(empty_rows: float) -> None:
    given = padded(empty_rows)
    text = np.asarray(given)[:, :, 3:, 3:]
    assert np.isnan(entropy(given)[..., :3]).all()
    np.testing.assert_allclose(entropy(given)[..., 3:], entropy(text), atol=1e-5)
    np.testing.assert_allclose(attention_distance(given), attention_distance(text), atol=1e-5)
    got, expected = specialization(given, causal=True), specialization(text)
    np.testing.assert_allclose(got.diagonal_mass, expected.diagonal_mass, atol=1e-6)
    np.testing.assert_allclose(got.prefix_mass, 0)
    arrived = rollout([given, given])
    np.testing.assert_array_equal(arrived[:3], np.eye(17)[:3])
    np.testing.assert_allclose(arrived[3:, 3:], rollout([text[0].mean(axis=0)] * 2), atol=1e-6)


@pytest.mark.parametrize("residual", [0.0, 0.3, 1.0])
@pytest.mark.usefixtures("small_blocks")
@each_kind
def test_rollout_averages_the_heads(make: Any, residual: float) -> None:
    maps = [make(), make()]
    for item in range(len(maps[0])):
        averaged = [np.asarray(one)[item].mean(axis=0) for one in maps]
        got = rollout(maps, residual=residual, item=item)
        expected = rollout(averaged, residual=residual)
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_rollout_of_what_is_captured() -> None:
    maps = captured_maps()
    expected = rollout([np.asarray(one)[0].mean(axis=0) for one in maps])
    np.testing.assert_allclose(rollout(maps), expected, atol=1e-6)
    np.testing.assert_allclose(rollout([one for (one,) in maps.layers]), expected, atol=1e-6)


def test_rollout_of_a_single_layer() -> None:
    given = map_of_call()
    np.testing.assert_array_equal(rollout(given), rollout([given]))


def test_rollout_of_a_batch_needs_a_choice() -> None:
    maps = [map_of_call(2), map_of_call(2, seed=1)]
    with pytest.raises(ShapeError, match=r"weights\[0\] has a batch of 2.*item=0 to item=1"):
        rollout(maps)
    with pytest.raises(OutOfRangeError, match="item 2 is out of range"):
        rollout(maps, item=2)
    with pytest.raises(OutOfRangeError, match="have no batch"):
        rollout(random_weights(2, 3, 3), item=0)


def test_rollout_takes_one_map_for_each_layer_of_one_size() -> None:
    with pytest.raises(ShapeError, match=r"got lists of them.*calls\[-1\]"):
        rollout([[map_of_call()], [map_of_call()]])
    with pytest.raises(ShapeError, match=r"\(5, 17\)"):
        rollout([map_of_call(queries=5)])
    with pytest.raises(ShapeError, match=r"of one size.*\(9, 9\), \(17, 17\)"):
        rollout([map_of_call(), map_of_call(tokens=9)])
    with pytest.raises(OutOfRangeError, match="residual is 2"):
        rollout([map_of_call()], residual=2)


@pytest.mark.usefixtures("small_blocks")
def test_a_row_of_the_rollout_needs_no_other_row() -> None:
    maps = [map_of_call(seed=seed) for seed in range(3)]
    layers = [rows.rows_of_map(one, 0).mean() for one in maps]
    whole = rollout(maps, residual=0.25)
    for query in (0, 16):
        got = rollout_row(layers, np.eye(17)[query], residual=0.25)
        np.testing.assert_allclose(got, whole[query], atol=1e-6)
    together = rollout_row(layers, np.full(17, 1 / 17), residual=0.25)
    np.testing.assert_allclose(together, whole.mean(axis=0), atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_nothing_takes_the_whole_map() -> None:
    given = Watched.of(1, 3, 17, seed=2)
    for function in FUNCTIONS.values():
        function(given)
    rollout([given, given])
    assert max(np.prod(shape) for shape in given.taken) <= 3 * 4 * 17


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("query", [0, 7, -1])
def test_rollout_to_one_query(query: int) -> None:
    maps = [map_of_call(2, seed=seed, mask=Mask(causal=0)) for seed in range(3)]
    got = rollout(maps, item=1, query=query)
    assert (got.shape, got.dtype) == ((17,), np.float32)
    np.testing.assert_allclose(got, rollout(maps, item=1)[query], atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "function", [lambda maps: rollout(maps, query=5), lambda maps: attention_flow(maps, 5)]
)
def test_of_the_last_layer_one_row_is_taken(function: Any) -> None:
    first, last = Watched.of(1, 3, 17, seed=1), Watched.of(1, 3, 17, seed=2)
    function([first, last])
    assert len(last.taken) == 1
    assert last.taken[0][-2] < 17
    assert sum(shape[-2] for shape in first.taken) == 17


def test_heads_across_layers() -> None:
    maps = [map_of_call(2, seed=seed) for seed in range(4)]
    for given in (maps, tuple(maps)):
        check(
            lambda w: head_similarity(w, across_layers=True),
            given,
            np.stack([np.asarray(one) for one in maps]),
        )
    with pytest.raises(ShapeError, match=r"one AttentionMap for each layer.*calls\[-1\]"):
        head_similarity([maps], across_layers=True)
    with pytest.raises(ShapeError, match="one AttentionMap for each layer"):
        head_similarity(maps[0], across_layers=True)
    with pytest.raises(ShapeError, match=r"shapes \[\(1, 3, 17, 17\), \(2, 3, 17, 17\)\]"):
        head_similarity([maps[0], map_of_call()], across_layers=True)


@pytest.mark.usefixtures("small_blocks")
def test_sparsity_knows_the_mask_of_a_call() -> None:
    causal = map_of_call(2, mask=Mask(causal=0))
    check(lambda w: sparsity(w, causal=True), causal, np.asarray(causal))
    np.testing.assert_array_equal(sparsity(causal), sparsity(causal, causal=True))
    kept = AttentionMap.from_weights(np.asarray(causal))
    np.testing.assert_array_equal(sparsity(kept, causal=True), sparsity(causal))
    assert (sparsity(kept) > sparsity(causal)).any()
    object.__setattr__(kept.record, "is_causal", True)
    np.testing.assert_array_equal(sparsity(kept), sparsity(causal))


@pytest.mark.parametrize("hides", [torch.finfo(torch.float16).min, -3e38, -float("inf"), -1e4])
def test_sparsity_knows_what_a_bias_hides(hides: float) -> None:
    bias = torch.randn(1, 3, 17, 17, generator=torch.Generator().manual_seed(4))
    hidden = torch.ones(17, 17, dtype=torch.bool).triu(1)
    given = map_of_call(mask=Mask(bias=bias.masked_fill(hidden, hides)))
    kept = AttentionMap.from_weights(np.asarray(given))
    np.testing.assert_array_equal(sparsity(given), sparsity(kept, causal=True))


@pytest.mark.usefixtures("small_blocks")
def test_rollout_takes_the_chosen_item_only() -> None:
    given = Watched.of(3)
    rollout([given], item=1)
    assert sum(np.prod(shape) for shape in given.taken) == given.size / 3


def test_a_map_above_a_gibibyte() -> None:
    given = map_of_call(1, 16, 4200)
    with pytest.raises(MemoryError):
        np.asarray(given)
    row = given[0, 3, 7:8]
    np.testing.assert_allclose(entropy(given)[0, 3, 7], entropy(row)[0], atol=1e-5)


def test_an_overwritten_map_says_so() -> None:
    given = map_of_call()
    given.record.read().query.add_(1)
    with pytest.raises(RuntimeError, match="written to in place"):
        mass(given, 0)


def test_maps_are_recognised_without_loading_torch() -> None:
    code = (
        "import sys; from visualizer.analysis import entropy, rollout; import visualizer.plot; "
        "entropy([[1.0, 0.0]]); rollout([[[1, 0], [0, 1]]]); "
        "print('torch' in sys.modules, 'visualizer.attention' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout.split() == ["False", "False"], finished.stderr
