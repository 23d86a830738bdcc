"""`captured.attention`: by number, slice, path and layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.block.samples import Attention, Tiny, expected_map, numbers
from visualizer import AttentionMap, capture
from visualizer.errors import OutOfRangeError, UnknownKeyError


@pytest.fixture
def captured():
    model = Tiny(3)
    with torch.no_grad(), capture(model) as taken:
        model(numbers())
        model(numbers(4))
    return taken


def test_by_number(captured) -> None:
    view = captured.attention
    assert len(view) == 6
    assert all(isinstance(made, AttentionMap) for made in view)
    assert view[0] is next(iter(view))
    assert view[-1] is view[5]
    assert view[np.int64(2)] is view[2]
    assert [m.shape[2] for m in view] == [6, 6, 6, 4, 4, 4]
    assert view[0] in view


def test_by_slice(captured) -> None:
    view = captured.attention
    assert view[1:3] == [view[1], view[2]]
    assert view[::-1][0] is view[5]
    assert view[10:] == []


def test_by_path(captured) -> None:
    view = captured.attention
    assert view["blocks.1.attn"] == [view[1], view[4]]
    assert view["1.attn"] == view["blocks.1.attn"]
    view["blocks.1.attn"].clear()
    assert len(view["blocks.1.attn"]) == 2


def test_by_layer(captured) -> None:
    view = captured.attention
    assert view.layers == [[view[0], view[3]], [view[1], view[4]], [view[2], view[5]]]
    assert view.paths == [f"blocks.{i}.attn" for i in range(3)]
    view.layers.clear()
    assert len(view.layers) == 3


@pytest.mark.parametrize("index", [6, -7, 100])
def test_a_number_that_is_out_of_range(captured, index: int) -> None:
    with pytest.raises(IndexError, match="6 attention calls were captured, 0 to 5"):
        captured.attention[index]
    with pytest.raises(OutOfRangeError):
        captured.attention[index]


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("attn", "'blocks.0.attn', 'blocks.1.attn'"),
        ("blocks.1.atn", "'blocks.1.attn'"),
        ("blocks.1", "'blocks.1.attn'"),
        ("ttn", "captured.attention.paths"),
        ("", "captured.attention.paths"),
        ("zzz", "captured.attention.paths lists the modules"),
    ],
)
def test_a_path_that_is_unknown_or_not_unique(captured, path: str, near: str) -> None:
    with pytest.raises(KeyError, match=near):
        captured.attention[path]
    with pytest.raises(UnknownKeyError):
        captured.attention[path]


def test_another_kind_of_index_is_a_type_error(captured) -> None:
    for index in (1.5, None, (0, 1), b"x"):
        with pytest.raises(TypeError):
            captured.attention[index]


def test_a_path_outranks_a_suffix() -> None:
    model = nn.ModuleDict({"attn": Attention(), "inner": nn.ModuleDict({"attn": Attention()})})
    with capture(model) as taken:
        model["attn"](numbers())
        model["inner"]["attn"](numbers())
    assert taken.attention["attn"] == [taken.attention[0]]
    assert taken.attention["inner.attn"] == [taken.attention[1]]


def test_the_view_grows_while_the_block_is_open() -> None:
    model, x = Tiny(1), numbers()
    with capture(model) as taken:
        view = taken.attention
        assert len(view) == 0
        model(x)
        assert len(view) == 1
        for made in view:
            model(x)
            assert made is view[0]
        assert len(view) == 2


@pytest.mark.parametrize(
    "around",
    [
        torch.no_grad,
        torch.inference_mode,
        torch.enable_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
    ],
    ids=["no_grad", "inference_mode", "enable_grad", "autocast", "default device"],
)
def test_reading_in_the_block_captures_nothing_and_is_exact(around) -> None:
    module, x = Attention(), numbers()
    with torch.no_grad():
        q, k, _ = module.project(x).unbind(0)
    with capture(module, modules=["**"], keep="qk") as taken:
        module(x)
        with around():
            made = taken.attention[0]
            whole = made.weights()
            made.entropy(), made.received(), made.top_keys(2), made.logsumexp()
            made.row(1), made.column(1), made.mass([0]), made.distance(), list(made.blocks())
            assert made.confirmed is True
        assert len(taken.attention) == 1
        assert len(taken.modules["qkv"]) == 1
        module(x)
        assert len(taken.attention) == 2
    np.testing.assert_allclose(whole, expected_map(q, k), atol=2e-6)


def test_reading_in_the_block_leaves_gradients_alone() -> None:
    module, x = Attention(), numbers()
    module(x).sum().backward()
    expected = module.qkv.weight.grad.clone()
    module.zero_grad()
    with capture(module) as taken:
        out = module(x)
        taken.attention[0].entropy()
        np.asarray(taken.attention[0])
        out.sum().backward()
        taken.attention[0].received()
    assert torch.equal(module.qkv.weight.grad, expected)


def test_maps_are_confirmed() -> None:
    model = Tiny(3)
    with capture(model) as taken:
        for tokens in (6, 6, 5):
            model(numbers(tokens))
    assert [m.confirmed for m in taken.attention] == [True] * 9


def test_calls_of_all_sizes_stay_in_their_order() -> None:
    model = Tiny(2)
    sizes = [3, 700, 4, 5, 900, 6]
    with torch.no_grad(), capture(model) as taken:
        for tokens in sizes:
            model(numbers(tokens, batch=1))
    assert [m.shape[2] for m in taken.attention] == [size for size in sizes for _ in range(2)]
    assert [m.step for m in taken.attention["blocks.1.attn"]] == list(range(6))
    assert [m.call for m in taken.attention["blocks.0.attn"]] == list(range(6))


def test_maps_that_are_read_late_and_in_any_order() -> None:
    module = Attention()
    xs = [numbers(tokens, batch=1) for tokens in (5, 6, 7)]
    with torch.no_grad(), capture(module) as taken:
        for x in xs:
            module(x).zero_()
    for index in (2, 0, 1):
        with torch.no_grad():
            q, k, _ = module.project(xs[index]).unbind(0)
        made = taken.attention[index]
        np.testing.assert_allclose(np.asarray(made), expected_map(q, k), atol=2e-6)
        assert made.confirmed is not False
