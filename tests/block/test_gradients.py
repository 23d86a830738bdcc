"""`capture(gradients=True)`: what comes back for attention, and what is said where nothing does."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.block.samples import Attention, SoftmaxAttention, Tiny, numbers, qkv
from visualizer import capture
from visualizer._block.attention_record import AttentionRecord
from visualizer.errors import (
    CaptureBudgetError,
    NoGradientError,
    OverwrittenError,
)


def reference(q: Tensor, k: Tensor, v: Tensor, loss: Any, mask: Tensor | None = None) -> np.ndarray:
    """Return what autograd says of the map, step by step in float64."""
    q, k, v = (each.detach().double() for each in (q, k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1).requires_grad_()
    loss(weights @ v).backward()
    assert weights.grad is not None
    return weights.grad.numpy()


def assert_close(found: Any, expected: Any, error: float = 2e-6) -> None:
    """Compare in proportion to the largest."""
    largest = np.abs(expected).max()
    assert largest > 0
    np.testing.assert_allclose(found / largest, expected / largest, rtol=0, atol=error)


def cubes(output: Tensor) -> Tensor:
    return output.pow(3).sum()


def leaves(*args: Any, **options: Any) -> list[Tensor]:
    return [each.requires_grad_() for each in qkv(*args, **options)]


@pytest.mark.parametrize("keep", ["auto", "qk", "rows", "weights"])
@pytest.mark.parametrize("causal", [False, True])
def test_it_is_what_autograd_says(keep: str, causal: bool) -> None:
    q, k, v = leaves(tokens=9, heads=4, batch=2)
    with capture(gradients=True, keep=keep) as captured:
        output = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    cubes(output).backward()
    mask = torch.ones(9, 9, dtype=torch.bool).tril() if causal else None
    expected = reference(q, k, v, cubes, mask)
    (made,) = captured.attention
    assert_close(made.gradient(), expected)
    assert_close(made.gradient(3), expected[:, :, 3])
    assert_close(made.gradient(-1, head=2, item=1), expected[1, 2, -1])


def test_of_float64_it_is_float64() -> None:
    q, k, v = (each.detach().double().requires_grad_() for each in qkv(tokens=9))
    with capture(gradients=True) as captured:
        cubes(F.scaled_dot_product_attention(q, k, v)).backward()
    expected = reference(q, k, v, cubes)
    assert_close(captured.attention[0].gradient(), expected, 1e-13)


@pytest.mark.parametrize("keep", ["qk", "rows"])
def test_key_heads_that_are_shared(keep: str) -> None:
    q, _, _ = leaves(heads=6)
    _, k, v = leaves(heads=2)
    with capture(gradients=True, keep=keep) as captured:
        cubes(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)).backward()
    repeated = [each.repeat_interleave(3, 1) for each in (k, v)]
    expected = reference(q, *repeated, cubes)
    assert_close(captured.attention[0].gradient(), expected)
    assert_close(captured.attention[0].gradient(head=3), expected[:, 3])


def test_bfloat16_is_computed_in_float32() -> None:
    q, k, v = (each.detach().bfloat16().requires_grad_() for each in qkv(tokens=12))
    with capture(gradients=True) as captured:
        output = F.scaled_dot_product_attention(q, k, v)
        output.sum().backward()
    expected = torch.ones(1, 2, 12, 8) @ v.detach().float().transpose(-2, -1)
    assert_close(captured.attention[0].gradient(), expected.numpy())


def test_the_map_that_a_program_computes_by_itself() -> None:
    model = SoftmaxAttention()
    x = numbers()
    with capture(model, gradients=True) as captured:
        model(x).pow(3).sum().backward()
    (made,) = captured.attention
    assert made.source == "softmax"
    q, k, v = model.project(x).unbind(0)
    expected = reference(
        q, k, v, lambda mixed: model.double().proj(mixed.transpose(1, 2).flatten(2)).pow(3).sum()
    )
    assert_close(made.gradient(), expected)


@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention_of_torch(need_weights: bool) -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=True)
    x = numbers()
    with capture(layer, gradients=True) as captured:
        output, _ = layer(x, x, x, need_weights=need_weights, average_attn_weights=False)
        output.pow(3).sum().backward()
    (made,) = captured.attention
    projected = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).detach()
    q, k, v = projected.unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    expected = reference(
        q,
        k,
        v,
        lambda mixed: layer.double().out_proj(mixed.transpose(1, 2).flatten(2)).pow(3).sum(),
    )
    assert_close(made.gradient(), expected)


@pytest.mark.parametrize("inside", [True, False])
def test_the_backward_pass_may_come_after_the_block(inside: bool) -> None:
    model, x = Tiny(), numbers()
    with capture(model, gradients=True) as captured:
        loss = cubes(model(x))
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    assert [each.gradient().shape for each in captured.attention] == [(2, 4, 6, 6)] * 3
    assert "gradient" not in captured.explain()


def test_the_last_backward_pass_counts() -> None:
    model, x = Tiny(), numbers()
    with capture(model, gradients=True) as captured:
        logits = model(x)[:, 0].sum(0)
    found = []
    for target in (0, 1):
        logits[target].backward(retain_graph=True)
        found.append(captured.attention[0].gradient())
    with capture(model, gradients=True) as alone:
        model(x)[:, 0].sum(0)[1].backward()
    assert not np.allclose(found[0], found[1])
    np.testing.assert_array_equal(found[1], alone.attention[0].gradient())


def test_a_backward_pass_that_is_itself_differentiated() -> None:
    q, k, v = leaves()
    with capture(gradients=True) as captured:
        loss = cubes(F.scaled_dot_product_attention(q, k, v))
        (first,) = torch.autograd.grad(loss, q, create_graph=True)
    expected = reference(q, k, v, cubes)
    assert_close(captured.attention[0].gradient(), expected)
    assert first.requires_grad


def test_nothing_is_kept_of_the_graph() -> None:
    q, k, v = leaves()
    with capture(gradients=True) as captured:
        output = F.scaled_dot_product_attention(q, k, v)
        cubes(output).backward()
    graph = weakref.ref(output)
    del output
    gc.collect()
    assert graph() is None
    for kept in captured.attention[0].record.tensors():  # type: ignore[attr-defined]
        assert not kept.requires_grad


def records() -> list[Any]:
    return [each for each in gc.get_objects() if type(each) is AttentionRecord]


def test_the_graph_keeps_nothing_of_the_capture() -> None:
    q, k, v = leaves()
    with capture(gradients=True) as captured:
        output = F.scaled_dot_product_attention(q, k, v)
    assert len(records()) == 1
    del captured
    gc.collect()
    assert records() == []
    cubes(output).backward()
    assert q.grad is not None


@pytest.mark.parametrize("attention", [Attention, SoftmaxAttention])
def test_output_and_gradients_are_those_without_a_capture(attention: Any) -> None:
    model, x = Tiny(attention=attention), numbers()
    results = []
    for capturing in (False, True):
        model.zero_grad()
        if capturing:
            with capture(model, gradients=True):
                output = model(x)
                cubes(output).backward()
        else:
            output = model(x)
            cubes(output).backward()
        gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
        results.append([output.detach(), *gradients])
    for plain, captured in zip(*results, strict=True):
        assert torch.equal(plain, captured)


# --- what is said where there is none -------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("attention", [Attention, SoftmaxAttention])
def test_without_autograd_it_says_what_to_change(mode: Any, attention: Any) -> None:
    model = Tiny(attention=attention)
    with mode(), capture(model, gradients=True) as captured:
        model(numbers())
    with pytest.raises(NoGradientError, match=r"'blocks.0.attn'.*no_grad.*\.backward\(\)"):
        captured.attention[0].gradient()
    assert "3 of 3 attention maps have no gradient: the model ran without" in captured.explain()


def test_of_fused_layers_too() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, batch_first=True).eval()
    with torch.no_grad(), capture(layer, gradients=True) as captured:
        layer(numbers())
    with pytest.raises(NoGradientError, match="no_grad"):
        captured.attention[0].gradient()


def test_frozen_parameters_have_no_graph_either() -> None:
    model = Tiny().requires_grad_(False)
    with capture(model, gradients=True) as captured:
        model(numbers())
    with pytest.raises(NoGradientError, match="neither parameters nor inputs"):
        captured.attention[0].gradient()


def test_without_gradients_asked_for() -> None:
    model = Tiny()
    with capture(model) as captured:
        cubes(model(numbers())).backward()
    with pytest.raises(NoGradientError, match=r"capture\(model, gradients=True\)"):
        captured.attention[0].gradient()


def test_without_a_backward_pass() -> None:
    model = Tiny()
    with capture(model, gradients=True) as captured:
        model(numbers())
    with pytest.raises(NoGradientError, match="no backward pass has reached it"):
        captured.attention[0].gradient()
    assert "3 of 3 attention maps have no gradient: no backward pass" in captured.explain()


def test_a_backward_pass_that_reaches_some() -> None:
    model, x = Tiny(), numbers()
    with capture(model, gradients=True) as captured:
        early = model.blocks[0](x)
        model.blocks[1](early)
        cubes(early).backward()
    captured.attention[0].gradient()
    with pytest.raises(NoGradientError, match=r"'blocks.1.attn'.*no backward pass has reached it"):
        captured.attention[1].gradient()
    assert "1 of 2 attention maps" in captured.explain()


def test_under_dropout() -> None:
    q, k, v = leaves()
    with capture(gradients=True) as captured:
        cubes(F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)).backward()
    with pytest.raises(NoGradientError, match=r"dropout.*model\.eval\(\)"):
        captured.attention[0].gradient()


def test_gradients_of_what_is_not_captured() -> None:
    with pytest.raises(TypeError, match="attention=False"):
        capture(gradients=True, attention=False)


def test_an_index_that_does_not_exist() -> None:
    q, k, v = leaves()
    with capture(gradients=True) as captured:
        cubes(F.scaled_dot_product_attention(q, k, v)).backward()
    with pytest.raises(IndexError, match="query 7 is out of range"):
        captured.attention[0].gradient(7)
    with pytest.raises(MemoryError, match="the gradient, of shape"):
        captured.attention[0].gradient(max_bytes=10)


def test_values_that_were_written_to() -> None:
    q, k, v = leaves()
    values = v.detach()
    with capture(gradients=True) as captured:
        output = F.scaled_dot_product_attention(q, k, v)
        cubes(output).backward()
    values.zero_()
    with pytest.raises(OverwrittenError):
        captured.attention[0].gradient()


def test_values_of_a_cache_may_be_written_to() -> None:
    (q, _, _), (_, k, v) = leaves(tokens=4), leaves(tokens=9)
    values = v.detach()
    with capture(gradients=True) as captured:
        output = F.scaled_dot_product_attention(q, k, v)
        cubes(output).backward()
    expected = reference(q, k, v, cubes)
    values.zero_()
    assert_close(captured.attention[0].gradient(), expected)


def test_gradients_count_for_the_limit() -> None:
    q, k, v = leaves(tokens=64)
    with capture(gradients=True, keep="qk") as captured:
        cubes(F.scaled_dot_product_attention(q, k, v)).backward()
    each = q.nbytes
    assert 4 * each <= captured.nbytes <= 4.5 * each
    with (
        pytest.raises(CaptureBudgetError),
        capture(gradients=True, keep="qk", max_bytes=int(3.9 * each)) as captured,
    ):
        F.scaled_dot_product_attention(q, k, v)
    with capture(gradients=True, keep="qk", max_bytes=int(4.6 * each)) as captured:
        F.scaled_dot_product_attention(q, k, v)


# --- checkpoints ----------------------------------------------------------------------------------


class Checkpointed(Tiny):
    """Each block is checkpointed."""

    reentrant = True

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("keep", ["qk", "rows"])
def test_checkpoints(reentrant: bool, keep: str) -> None:
    plain, x = Tiny(), numbers().requires_grad_()
    with capture(plain, gradients=True) as expected:
        cubes(plain(x)).backward()
    model = Checkpointed()
    model.load_state_dict(plain.state_dict())
    model.reentrant = reentrant
    with capture(model, gradients=True, keep=keep) as captured:
        first = model(x)
        second = model(2 * x)
        cubes(second).backward()
        cubes(first).backward()
    assert [each.step for each in captured.attention] == [0, 0, 0, 1, 1, 1]
    for made, known in zip(captured.attention[:3], expected.attention, strict=True):
        np.testing.assert_array_equal(made.gradient(), known.gradient())
    with capture(plain, gradients=True) as doubled:
        cubes(plain(2 * x)).backward()
    for made, known in zip(captured.attention[3:], doubled.attention, strict=True):
        np.testing.assert_array_equal(made.gradient(), known.gradient())


def test_several_blocks_in_one_checkpoint_and_a_second_backward_pass() -> None:
    plain, x = Tiny(4), numbers().requires_grad_()
    with capture(plain, gradients=True) as expected:
        cubes(plain(x)).backward()
    with capture(plain, gradients=True) as captured:
        y = checkpoint_sequential(list(plain.blocks), 2, x, use_reentrant=True)
        loss = cubes(plain.head(y))
        loss.backward(retain_graph=True)
        loss.backward()
    assert len(captured.attention) == 4
    for made, known in zip(captured.attention, expected.attention, strict=True):
        np.testing.assert_array_equal(made.gradient(), known.gradient())


def test_a_reentrant_checkpoint_whose_backward_pass_comes_too_late() -> None:
    model, x = Checkpointed(), numbers().requires_grad_()
    with capture(model, gradients=True) as captured:
        loss = cubes(model(x))
    loss.backward()
    with pytest.raises(NoGradientError, match=r"inside the block.*use_reentrant=False"):
        captured.attention[0].gradient()


def test_checkpoints_within_checkpoints_say_that_there_is_none() -> None:
    model, x = Checkpointed(2), numbers().requires_grad_()
    with capture(model, gradients=True) as captured:
        cubes(checkpoint(model, x, use_reentrant=True)).backward()
    assert len(captured.attention) == 2
    for made in captured.attention:
        with pytest.raises(NoGradientError, match="checkpoint"):
            made.gradient()


# --- surroundings ---------------------------------------------------------------------------------


def test_several_threads_each_with_its_own_backward_pass() -> None:
    model = Tiny()
    inputs = [numbers() for _ in range(4)]
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        with capture(model, gradients=True) as captured:
            loss = cubes(model(inputs[number]))
            torch.autograd.grad(loss, list(model.parameters()))
        found[number] = captured.attention[0].gradient()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, x in enumerate(inputs):
        with capture(model, gradients=True) as alone:
            cubes(model(x)).backward()
        np.testing.assert_array_equal(found[number], alone.attention[0].gradient())


def test_two_captures_have_it_both() -> None:
    model, x = Tiny(), numbers()
    with capture(model, gradients=True) as outer, capture(model, gradients=True) as inner:
        cubes(model(x)).backward()
    np.testing.assert_array_equal(outer.attention[0].gradient(), inner.attention[0].gradient())


def test_what_is_returned_may_be_written_to() -> None:
    q, k, v = leaves()
    expected = reference(q, k, v, lambda o: o.mul(2).add(1).pow(3).sum())
    with capture(gradients=True) as captured, sdpa_kernel(SDPBackend.MATH):  # which allows it
        output = F.scaled_dot_product_attention(q, k, v)
        output.mul_(2).add_(1)
        cubes(output).backward()
    assert_close(captured.attention[0].gradient(), expected)


def test_a_compiled_model_runs_as_python_for_it() -> None:
    model, x = Tiny(), numbers()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(x)
    with capture(model, gradients=True) as captured:
        cubes(compiled(x)).backward()
    with capture(model, gradients=True) as expected:
        cubes(model(x)).backward()
    for made, known in zip(captured.attention, expected.attention, strict=True):
        np.testing.assert_array_equal(made.gradient(), known.gradient())
    torch._dynamo.reset()
