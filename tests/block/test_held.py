"""What is kept by reference: protected from writing, without its graph, and no more than needed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.block.samples import Attention, SoftmaxAttention, expected_map, numbers, qkv
from visualizer import capture
from visualizer.errors import OverwrittenError


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "write",
    [
        lambda t: t.zero_(),
        lambda t: t.mul_(2),
        lambda t: t.copy_(torch.randn_like(t)),
        lambda t: t[..., 0, :].fill_(3),
        lambda t: torch.add(torch.ones_like(t), 1, out=t),
        lambda t: t.view(-1)[0:1].mul_(2),
        lambda t: t.__setitem__((0, 0, 0), 5),
        lambda t: t.index_copy_(2, torch.tensor([0]), torch.zeros_like(t[:, :, :1])),
    ],
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_writing_to_queries_or_keys_is_noticed(which: int, write: Any, mode: Any) -> None:
    tensors = qkv()
    with capture(keep="qk") as captured:
        F.scaled_dot_product_attention(*tensors)
        F.scaled_dot_product_attention(*tensors)
    before = expected_map(*tensors[:2])
    with mode():
        write(tensors[which])
    for made in captured.attention:
        for read in (
            np.asarray,
            lambda m: m[0, 0, 0],
            lambda m: m.entropy(),
            lambda m: m.column(0),
        ):
            with pytest.raises(OverwrittenError):
                read(made)
    assert not np.allclose(before, expected_map(*tensors[:2]))


def test_rows_and_maps_that_were_read_before_stay() -> None:
    q, k, v = qkv()
    before = expected_map(q, k)
    with capture(keep="rows") as captured:
        F.scaled_dot_product_attention(q, k, v)
        q.zero_()
    np.testing.assert_allclose(np.asarray(captured.attention[0]), before, atol=1e-6)


def test_an_overwritten_map_is_not_refused_and_not_confirmed() -> None:
    q, k, v = qkv()
    with capture(keep="qk") as captured:
        for _ in range(2):
            F.scaled_dot_product_attention(q, k, v)
        k.add_(1)
    assert captured.attention[1].confirmed is None
    assert "not confirmed" in repr(captured.attention[1])


def mask_of(kind: str, tokens: int) -> Tensor:
    if kind == "bias":
        return torch.randn(tokens, tokens)
    if kind == "bool":
        return torch.rand(tokens, tokens) > 0.3
    return torch.ones(tokens, tokens).tril().log()


@pytest.mark.parametrize("kind", ["bias", "bool", "causal"])
@pytest.mark.parametrize("inference", [True, False])
def test_a_mask_that_is_written_to_gives_no_wrong_map(kind: str, inference: bool) -> None:
    with torch.inference_mode(inference):
        q, k, v = qkv()
        mask = mask_of(kind, 7)
        added = mask if mask.is_floating_point() else torch.zeros(7, 7).masked_fill(~mask, -1e30)
        before = expected_map(q, k, added)
        with capture(keep="qk") as captured:
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            mask.zero_()
            mask[:, 0] = 1
    try:
        found = np.asarray(captured.attention[0])
    except OverwrittenError:
        return
    np.testing.assert_allclose(found, before, atol=1e-6)


def test_inference_tensors_are_cloned() -> None:
    with torch.inference_mode():
        q, k, v = qkv()
        before = expected_map(q, k)
        with capture(keep="qk") as captured:
            F.scaled_dot_product_attention(q, k, v)
            q.zero_()
            k.zero_()
    np.testing.assert_allclose(np.asarray(captured.attention[0]), before, atol=1e-6)
    assert captured.attention[0].confirmed is True


def test_weights_that_are_written_to_are_noticed() -> None:
    def attend(x: Tensor) -> Tensor:
        attn = (x @ x.mT).softmax(-1)
        attn.mul_(0.5)
        return attn

    with capture(keep="qk") as captured:
        attend(torch.randn(1, 2, 5, 4))
    with pytest.raises(OverwrittenError):
        np.asarray(captured.attention[0])


def test_weights_of_a_fused_layer_that_are_trained_on_are_noticed() -> None:
    module = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = numbers(40)
    with torch.no_grad(), capture(module, keep="qk") as captured:
        module(x, x, x)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module(x, x, x)[0].sum().backward()
    before = module.in_proj_weight.clone()
    optimizer.step()
    assert not torch.equal(before, module.in_proj_weight)
    try:
        found = np.asarray(captured.attention[0])
    except OverwrittenError:
        return
    with torch.no_grad():
        q, k, _ = F.linear(x, before, torch.zeros(48)).unflatten(-1, (3, 4, 4)).unbind(2)
        expected = expected_map(q.transpose(1, 2), k.transpose(1, 2))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_no_graph_is_kept_alive() -> None:
    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.marker = markers[0]
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    class Marker:
        pass

    markers = [Marker()]
    watched = weakref.ref(markers[0])
    module = Attention()
    eager = SoftmaxAttention()
    with capture(keep="qk", locals={SoftmaxAttention.forward: ["attn", "q"]}) as captured:
        x = Marked.apply(numbers().requires_grad_())
        eager(module(x)).sum()
    markers.clear()
    del x
    gc.collect()
    assert watched() is None
    assert len(captured.attention) == 2
    assert not any(t.requires_grad for m in captured.attention for t in m.record.tensors())


def test_values_and_outputs_are_not_kept() -> None:
    q, k, v = qkv(tokens=100)
    with torch.no_grad(), capture(keep="qk") as captured:
        out = F.scaled_dot_product_attention(q, k, v)
    watched = [weakref.ref(t.untyped_storage()) for t in (v, out)] + list(
        map(weakref.ref, (v, out))
    )
    assert captured.nbytes < 1.5 * (q.nbytes + k.nbytes)
    del v, out
    gc.collect()
    assert [ref() for ref in watched] == [None] * 4
    np.testing.assert_allclose(np.asarray(captured.attention[0]), expected_map(q, k), atol=1e-6)


def test_keys_before_they_are_repeated() -> None:
    q, k, v = qkv(heads=8, tokens=64)
    with torch.no_grad(), capture(keep="qk") as captured:
        F.scaled_dot_product_attention(q, k[:, :2].clone(), v[:, :2].clone(), enable_gqa=True)
    assert captured.nbytes < q.nbytes + k.nbytes / 2
    (made,) = captured.attention
    expected = expected_map(q, k[:, :2].repeat_interleave(4, 1))
    np.testing.assert_allclose(np.asarray(made), expected, atol=1e-6)


def test_expanded_tensors_are_held_once() -> None:
    q, k, v = qkv(tokens=64, heads=1)
    with torch.no_grad(), capture(keep="qk") as captured:
        F.scaled_dot_product_attention(q.expand(4, 2, -1, -1), k.expand(4, 2, -1, -1), v)
    np.testing.assert_allclose(
        np.asarray(captured.attention[0]),
        np.broadcast_to(expected_map(q, k), (4, 2, 64, 64)),
        atol=1e-6,
    )
    assert captured.attention[0].confirmed is True


def test_a_part_of_a_cache_is_cloned() -> None:
    cache = torch.randn(1, 2, 1000, 8)
    q, _, v = qkv()
    k = cache[:, :, :7]
    before = expected_map(q, k)
    with torch.no_grad(), capture(keep="qk") as captured:
        F.scaled_dot_product_attention(q, k, v)
    cache.zero_()
    np.testing.assert_allclose(np.asarray(captured.attention[0]), before, atol=1e-6)
    assert captured.nbytes < 5000


def test_a_bias_that_is_part_of_a_larger_one_does_not_pin_it() -> None:
    whole = torch.randn(1, 2, 500, 500)
    q, k, v = qkv()
    with torch.no_grad(), capture(keep="qk") as captured:
        F.scaled_dot_product_attention(q, k, v, attn_mask=whole[:, :, :7, :7])
    assert captured.nbytes < whole.nbytes / 10
    held = sum(t.untyped_storage().nbytes() for t in captured.attention[0].record.tensors())
    assert held < whole.nbytes / 10


@pytest.mark.parametrize("shape", [(7, 8), (2, 7, 8), (1, 2, 7, 8), (2, 3, 2, 7, 8)])
def test_any_number_of_axes(shape: tuple[int, ...]) -> None:
    q, k, v = (torch.randn(shape) for _ in range(3))
    with torch.no_grad(), capture() as captured:
        F.scaled_dot_product_attention(q, k, v)
    (made,) = captured.attention
    assert made.confirmed is True
    np.testing.assert_allclose(
        np.asarray(made).reshape(*shape[:-1], 7), expected_map(q, k), atol=1e-6
    )


def test_no_tensor_of_ours_is_an_inference_tensor_outside() -> None:
    with torch.inference_mode(), capture(keep="rows") as captured:
        F.scaled_dot_product_attention(*qkv())
    made = captured.attention[0]
    np.asarray(made), made.entropy(), made.received()
    assert not any(t.is_inference() for t in made.record.tensors())


def test_no_graph_is_kept_by_attention_that_returns_its_weights() -> None:
    """Its second product, of weights and values, once stayed behind in the thread."""
    module = nn.MultiheadAttention(16, 4, batch_first=True)
    x = torch.randn(2, 23, 16)
    with capture(module) as captured:
        out, weights = module(x, x, x)
    del out, weights, captured
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) is Tensor]
    assert [each for each in tensors if each.shape[-2:] == (23, 23)] == []


def test_a_mask_of_inference_mode_beside_tensors_that_are_none() -> None:
    q, k, v = qkv()
    with torch.inference_mode():
        mask = torch.randn(7, 7)
    with torch.no_grad(), capture() as captured:
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert captured.explain() == ""
    assert captured.attention[0].confirmed is True


def test_keys_that_are_more_than_the_queries_are_copied() -> None:
    """They are a cache, which a later step writes to."""
    q, _, _ = qkv(tokens=7, heads=2, dim=8)
    cache, v = torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    before = expected_map(q, cache)
    with torch.no_grad(), capture(keep="qk") as captured:
        F.scaled_dot_product_attention(q, cache, v)
    cache.zero_()
    np.testing.assert_allclose(np.asarray(captured.attention[0]), before, atol=1e-6)
