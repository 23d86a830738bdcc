"""Attention flow, against another algorithm and another library."""

from __future__ import annotations

import sys
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
pytest.importorskip("scipy", reason="scipy is not installed")

from tests.analysis.by_definition import flow as maximum_flow  # noqa: E402
from tests.analysis.weights import causal_weights, random_weights  # noqa: E402
from visualizer.analysis import AttentionFlow, attention_flow, flow  # noqa: E402
from visualizer.errors import (  # noqa: E402
    MapTooLargeError,
    MissingDependencyError,
    NotWeightsError,
    OutOfRangeError,
    ShapeError,
)


def kept_keys(weights: Any, keys: int) -> Any:
    """Set to 0 what is neither among the largest of its row nor on the diagonal."""
    least = np.sort(weights, axis=-1)[..., -keys, None]
    return np.where((weights >= least) | np.eye(weights.shape[-1], dtype=bool), weights, 0)


@pytest.mark.parametrize("residual", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("layers", "tokens"), [(1, 4), (2, 3), (3, 6), (5, 4), (2, 1)])
def test_it_is_the_maximum_flow(layers: int, tokens: int, residual: float) -> None:
    weights = random_weights(layers, tokens, tokens)
    for query in range(tokens):
        got = attention_flow(weights, query, residual=residual)
        wanted = [maximum_flow(weights.tolist(), query, to, residual) for to in range(tokens)]
        np.testing.assert_allclose(got.values, wanted, rtol=1e-5, atol=1e-8)
        assert got.is_exact
        assert got.dropped == 0


def test_the_residual_share_is_a_half_unless_said() -> None:
    weights = random_weights(2, 4, 4)
    got = attention_flow(weights, 1).values
    np.testing.assert_array_equal(got, attention_flow(weights, 1, residual=0.5).values)


def test_one_layer_is_its_row() -> None:
    weights = random_weights(1, 5, 5)
    got = attention_flow(weights, 2, residual=0).values
    np.testing.assert_allclose(got, weights[0, 2], rtol=1e-6)


def test_the_last_layer_is_gone_through_first() -> None:
    first, last = np.eye(3)[[1, 2, 0]], np.eye(3)[[0, 2, 1]]
    # Output 1 takes token 2 in the last layer, which takes token 0 in the first.
    got = attention_flow([first, last], 1, residual=0)
    np.testing.assert_array_equal(got.values, [1, 0, 0])


def test_nothing_flows_from_what_comes_later() -> None:
    got = attention_flow([causal_weights(6)] * 4, 2).values
    assert (got[:3] > 0.4).all()
    np.testing.assert_array_equal(got[3:], 0)


def test_the_narrowest_place_counts() -> None:
    """Both paths lead through one token, which passes on less than arrives."""
    last = np.array([[0, 0.5, 0.5], [0, 1, 0], [0, 0, 1.0]])
    first = np.array([[1, 0, 0], [0.1, 0.9, 0], [0.2, 0, 0.8]])
    got = attention_flow([first, last], 0, residual=0).values
    np.testing.assert_allclose(got, [0.3, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("keys", [1, 2, 4])
def test_dropped_keys_make_it_less(keys: int) -> None:
    weights = random_weights(3, 6, 6)
    kept = kept_keys(weights, keys)
    got, all_of_it = attention_flow(weights, -1, keys=keys), attention_flow(weights, 5)
    wanted = [maximum_flow(kept.tolist(), 5, to) for to in range(6)]
    np.testing.assert_allclose(got.values, wanted, rtol=1e-5, atol=1e-8)
    assert not got.is_exact
    assert 0 < got.dropped <= (1 - kept.sum(axis=-1)).max() + 1e-9
    assert (got.values <= all_of_it.values + 1e-8).all()


def test_what_is_dropped_is_that_of_rows_on_the_way() -> None:
    """Nothing leads from outputs 0 and 1 to token 2, and with one key nothing from 0 to 1."""
    layer = np.array([[0.7, 0.3, 0.0], [0.25, 0.75, 0.0], [0.1, 0.5, 0.4]])
    layers = [layer, np.array([[0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.45, 0.55, 0.0]])]
    assert attention_flow(layers, 0, keys=1).dropped == pytest.approx(0.4)
    assert attention_flow(layers, 1, keys=1).dropped == pytest.approx(0.25)
    assert attention_flow(layers, 2, keys=1).dropped == pytest.approx(0.45)
    assert attention_flow(layers, 0, keys=2).is_exact


def test_some_tokens_only() -> None:
    weights = random_weights(2, 6, 6)
    whole = attention_flow(weights, 3).values
    for to in (4, [4, 0], slice(2, 5), np.arange(6) % 2 == 0, -1):
        got = attention_flow(weights, 3, to=to).values
        np.testing.assert_array_equal(got, np.atleast_1d(whole[to]))


def test_the_type_stays() -> None:
    weights = random_weights(2, 4, 4)
    assert attention_flow(weights, 0).values.dtype == np.float64
    got = attention_flow(weights.astype(np.float16), 0).values
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, attention_flow(weights, 0).values, rtol=1e-2)


def test_what_comes_back_can_not_be_changed() -> None:
    got = attention_flow(random_weights(1, 2, 2), 0)
    assert type(got) is AttentionFlow
    with pytest.raises(AttributeError):
        got.dropped = 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": 4}, "query is 4; expected 0 to 3, or -1 to -4"),
        ({"query": -5}, "query is -5"),
        ({"query": True}, "query is True"),
        ({"query": 0, "keys": 0}, "keys is 0; expected a whole number, 1 to 4"),
        ({"query": 0, "keys": 5}, "keys is 5"),
        ({"query": 0, "to": 4}, "4 don't fit"),
        ({"query": 0, "residual": 1.5}, "residual is 1.5"),
        ({"query": 0, "item": 0}, "have no batch"),
    ],
    ids=str,
)
def test_refused(options: Any, message: str) -> None:
    with pytest.raises(OutOfRangeError, match=message):
        attention_flow(random_weights(2, 4, 4), **options)


def test_other_axes_are_refused_with_a_hint() -> None:
    with pytest.raises(ShapeError, match=r"attention_flow takes head-averaged.*weights.mean"):
        attention_flow(random_weights(2, 3, 4, 4), 0)
    with pytest.raises(NotWeightsError, match="sums to 6"):
        attention_flow(np.full((2, 3, 3), 2.0), 0)


def test_a_graph_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "_MOST_EDGES", 40)
    weights = random_weights(2, 5, 5)
    with pytest.raises(MapTooLargeError, match=r"2 layers with 5 tokens.*keys=4 or less"):
        attention_flow(weights, 0)
    assert attention_flow(weights, 0, keys=4).values.shape == (5,)


@pytest.mark.parametrize("missing", ["scipy.sparse.csgraph", "scipy.sparse"])
def test_without_scipy(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match="pip install scipy$"):
        attention_flow(random_weights(2, 3, 3), 0)


def tiny_bert() -> Any:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=32,
    )
    return transformers.BertModel(config).eval()


def networkx_flow(layers: Any, query: int, to: int) -> float:
    networkx = pytest.importorskip("networkx", reason="networkx is not installed")
    graph = networkx.DiGraph()
    for above, layer in enumerate(layers, 1):
        capacity = 0.5 * layer + 0.5 * np.eye(len(layer))
        for i, j in zip(*np.nonzero(capacity), strict=True):
            graph.add_edge((above, i), (above - 1, j), capacity=float(capacity[i, j]))
    return networkx.maximum_flow_value(graph, (len(layers), query), (0, to))


def test_captured_maps_of_a_model() -> None:
    """Of two texts, one of which is padded."""
    model = tiny_bert()
    import torch

    from visualizer import capture

    ids = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))
    seen = torch.ones_like(ids)
    seen[1, 8:] = 0
    with torch.no_grad(), capture(model) as captured:
        model(ids, attention_mask=seen)
    maps = captured.attention
    with pytest.raises(ShapeError, match="choose one with item=0 to item=1"):
        attention_flow(maps, 0)
    for item in range(2):
        layers = [np.asarray(one, np.float64)[item].mean(axis=0) for one in maps]
        for query in (0, 5, -1):
            got = attention_flow(maps, query, item=item)
            wanted = [networkx_flow(layers, query % 12, to) for to in range(12)]
            np.testing.assert_allclose(got.values, wanted, rtol=1e-5)
            assert got.is_exact
        kept = [kept_keys(layer, 3) for layer in layers]
        few = attention_flow(maps, 0, item=item, keys=3)
        wanted = [networkx_flow(kept, 0, to) for to in range(12)]
        np.testing.assert_allclose(few.values, wanted, rtol=1e-5, atol=1e-8)
        assert not few.is_exact
