"""What is kept, in which form, and what happens at the limit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.block.samples import Attention, SoftmaxAttention, Tiny, expected_map, numbers, qkv
from visualizer import capture
from visualizer.errors import CaptureBudgetError, CaptureWarning, OutOfRangeError

NAME = "SoftmaxAttention.forward"


def run(keep: Any, forwards: int = 5, **options: Any) -> Any:
    model = Tiny(2, SoftmaxAttention)
    locals_ = {SoftmaxAttention.forward: "attn"}
    with capture(
        model, keep=keep, locals=locals_, modules=["head"], inputs=True, **options
    ) as captured:
        for _ in range(forwards):
            model(numbers())
    return captured


def calls(captured: Any) -> tuple[list[int], ...]:
    return (
        [m.call for m in captured.attention["blocks.1.attn"]],
        [e.call for e in captured.modules["head"]],
        [e.call for e in captured.inputs["head"]],
        [e.call for e in captured.locals[NAME]["attn"]],
    )


def test_all_is_every_call() -> None:
    every = list(range(5))
    assert calls(run("all")) == (every, every, every, list(range(10)))
    assert calls(run("auto")) == calls(run(1)) == calls(run(["all"])) == calls(run("all"))


def test_last_is_the_last_call_of_each_site() -> None:
    captured = run("last")
    assert calls(captured) == ([4], [4], [4], [9])
    assert len(captured.attention) == 2
    assert [m.step for m in captured.attention] == [4, 4]


def test_a_number_is_every_nth_call_of_each_site() -> None:
    assert calls(run(2)) == ([0, 2, 4], [0, 2, 4], [0, 2, 4], [0, 2, 4, 6, 8])
    assert calls(run(100)) == ([0], [0], [0], [0])
    assert calls(run((3, "rows"))) == ([0, 3], [0, 3], [0, 3], [0, 3, 6, 9])


def test_last_and_every_nth_together() -> None:
    assert calls(run(("last", 3))) == ([3], [3], [3], [9])


@pytest.mark.parametrize(
    "keep", [0, -1, True, None, 2.5, "none", "Rows", ("last", "columns"), ((),), [None], {"a": 1}]
)
def test_what_is_no_choice(keep: Any) -> None:
    with pytest.raises(OutOfRangeError, match="expected 'all', 'last' or a number"):
        capture(keep=keep)


def hold(keep: Any, tensors: list[Any], **options: Any) -> Any:
    with torch.no_grad(), capture(keep=keep) as captured:
        F.scaled_dot_product_attention(*tensors, **options)
    return captured


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_every_form_gives_the_same_map(options: dict[str, Any]) -> None:
    tensors = qkv(tokens=9)
    maps = [hold(keep, tensors, **options).attention[0] for keep in ("qk", "rows", "weights")]
    first = np.asarray(maps[0])
    for made in maps:
        np.testing.assert_allclose(np.asarray(made), first, atol=1e-6)
        assert made.confirmed is True
        assert made.is_causal is bool(options.get("is_causal"))
        np.testing.assert_allclose(made.entropy(), maps[0].entropy(), atol=1e-5)
        np.testing.assert_allclose(made.received(), maps[0].received(), atol=1e-6)


def test_queries_and_keys_are_held_where_they_are_smaller() -> None:
    q, k, v = qkv(tokens=512, heads=2, dim=8)
    captured = hold("auto", [q, k, v])
    assert captured.nbytes < 1.5 * (q.nbytes + k.nbytes)


def test_one_query_against_long_keys_is_held_as_a_row() -> None:
    _, k, v = qkv(tokens=512, heads=2, dim=64)
    q = torch.randn(1, 2, 1, 64)
    captured = hold("auto", [q, k, v])
    assert captured.nbytes == 512 * 2 * 4
    np.testing.assert_allclose(captured.attention[0][0], expected_map(q, k)[0], atol=1e-6)
    assert captured.attention[0].confirmed is True
    k.zero_()  # a cache that is written in place
    np.testing.assert_allclose(captured.attention[0][0].sum(-1), 1, atol=1e-5)
    assert hold("qk", [q, k, v]).nbytes > k.nbytes


def test_rows_do_not_hold_the_mask() -> None:
    q, k, v = qkv(tokens=64, heads=2, dim=64)
    bias = torch.randn(1, 2, 64, 64)
    captured = hold("rows", [q[:, :, :1], k, v], attn_mask=bias[:, :, :1])
    held = captured.attention[0].record.tensors()
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) == 64 * 2 * 4
    import gc
    import weakref

    watched = weakref.ref(bias.untyped_storage())
    mask = getattr(captured.attention[0].record._held, "mask", None)
    parts = () if mask is None else mask.tensors()
    assert all(part.untyped_storage().nbytes() < bias.nbytes for part in parts)
    del bias, watched
    gc.collect()


def test_shared_masks_and_keys_count_once() -> None:
    q, k, v = qkv(tokens=32, heads=2, dim=4)
    bias = torch.randn(1, 1, 32, 32)
    with torch.no_grad(), capture(keep="qk") as captured:
        for _ in range(5):
            F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert captured.nbytes < q.nbytes + k.nbytes + bias.nbytes + 5 * 2000


def test_the_limit_stops_a_site_and_the_model_finishes() -> None:
    model, x = Tiny(2), numbers()
    plain = model(x)
    captured = capture(model, modules=["head"], keep="qk", max_bytes=8000)
    outs = []
    with pytest.raises(CaptureBudgetError, match="'blocks.0.attn'") as raised, captured:
        for _ in range(20):
            outs.append(model(x))
    assert isinstance(raised.value, MemoryError)
    assert all(torch.equal(out, plain) for out in outs)
    assert len(outs) == 20
    assert captured.nbytes <= 8000
    assert "7.8 KiB" in str(raised.value)
    assert 0 < len(captured.attention) < 40
    np.asarray(captured.attention[0])
    assert captured.modules["head"]
    assert "'blocks.0.attn' stopped" in captured.explain()


def test_the_limit_of_locals_and_modules_names_the_site() -> None:
    def function(y: Any) -> None:
        pass

    captured = capture(locals={function: "y"}, max_bytes=1000)
    with pytest.raises(CaptureBudgetError, match="'y' of"), captured:
        for _ in range(3):
            function(torch.zeros(100))
    assert len(captured.locals[function.__qualname__]["y"]) == 2
    model = nn.Sequential(nn.Linear(4, 4))
    captured = capture(model, modules=["0"], max_bytes=100)
    with pytest.raises(CaptureBudgetError, match="the output of 0"), captured:
        model(torch.zeros(2, 4))
        model(torch.zeros(100, 4))
        model(torch.zeros(2, 4))
    assert [e.call for e in captured.modules["0"]] == [0]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_is_not_masked_by_the_limit(kind: type[BaseException]) -> None:
    captured = capture(max_bytes=10)
    with pytest.warns(CaptureWarning, match="reached its limit"):
        with pytest.raises(kind, match="mine"), captured:
            F.scaled_dot_product_attention(*qkv())
            raise kind("mine")
    assert len(captured.attention) == 0


def test_an_exception_is_not_masked_where_warnings_are_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CaptureWarning)
        with pytest.raises(KeyboardInterrupt), capture(max_bytes=10):
            F.scaled_dot_product_attention(*qkv())
            raise KeyboardInterrupt


def test_the_last_of_each_site_needs_no_more_than_one() -> None:
    q, k, v = qkv(tokens=64)
    need = hold("qk", [q, k, v]).nbytes
    with capture(keep=("last", "qk"), max_bytes=int(1.2 * need)) as captured:
        for _ in range(10):
            F.scaled_dot_product_attention(q.clone(), k.clone(), v)
    (only,) = captured.attention
    assert only.call == 9
    assert captured.nbytes <= 1.2 * need


def test_what_was_last_stays_where_its_successor_is_too_large() -> None:
    small, large = qkv(tokens=8), qkv(tokens=512)
    captured = capture(keep=("last", "qk"), max_bytes=10_000)
    with pytest.raises(CaptureBudgetError), captured:
        F.scaled_dot_product_attention(*small)
        F.scaled_dot_product_attention(*large)
    (only,) = captured.attention
    assert only.shape == (1, 2, 8, 8)


@pytest.mark.parametrize("limit", [0, -5, True, False])
def test_a_limit_that_is_none(limit: Any) -> None:
    with pytest.raises(OutOfRangeError, match="max_bytes"):
        capture(max_bytes=limit)


def test_views_of_a_fused_projection_hold_no_more_than_they_are() -> None:
    module, x = Attention(), numbers(tokens=200)
    with torch.no_grad(), capture(module, keep="qk") as captured:
        module(x)
    q, k, _ = module.project(x).unbind(0)
    assert captured.nbytes <= 1.3 * (q.nbytes + k.nbytes)
    (made,) = captured.attention
    total = sum(t.untyped_storage().nbytes() for t in made.record.tensors())
    assert total == captured.nbytes


def test_own_weights_of_eager_attention_are_not_computed_twice() -> None:
    module, x = nn.MultiheadAttention(16, 4, batch_first=True).train(), numbers()
    for keep in ("weights", "qk", "rows", "auto"):
        with capture(module, keep=keep) as captured:
            _, weights = module(x, x, x, average_attn_weights=False)
        (made,) = captured.attention
        np.testing.assert_allclose(np.asarray(made), weights.detach().numpy(), atol=1e-6)
        assert made.confirmed is True
