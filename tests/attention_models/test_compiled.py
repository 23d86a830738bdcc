"""Compiled models of transformers: fused kernels and eager attention, with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

from visualizer import capture

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

IDS = torch.arange(24).reshape(2, 12) * 7 % 90
PADDED = torch.ones(2, 12, dtype=torch.long)
PADDED[1, :4] = 0
SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.eval_frame.cached_backends.clear()


def llama(attention: str) -> nn.Module:
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, attn_implementation=attention, use_cache=False
    )
    return transformers.LlamaModel(config)


def bert(attention: str) -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**SIZES, attn_implementation=attention))


def gpt2(attention: str) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=100,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
        use_cache=False,
    )
    return transformers.GPT2Model(config)


def gptj(_: str) -> nn.Module:
    """Takes a softmax of its own; inductor fuses it."""
    config = transformers.GPTJConfig(
        vocab_size=100,
        n_embd=32,
        n_layer=2,
        n_head=4,
        rotary_dim=4,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return transformers.GPTJModel(config)


def albert(_: str) -> nn.Module:
    """All layers are one."""
    return transformers.AlbertModel(transformers.AlbertConfig(**SIZES, embedding_size=16))


def gemma2(_: str) -> nn.Module:
    """Has softcap, and windows in every other layer."""
    config = transformers.Gemma2Config(
        **SIZES,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        attn_implementation="eager",
        use_cache=False,
    )
    return transformers.Gemma2Model(config)


CASES = [
    (llama, "sdpa", "inductor"),
    (llama, "eager", "inductor"),
    (gptj, "", "inductor"),
    (bert, "sdpa", "aot_eager"),
    (bert, "eager", "aot_eager"),
    (gpt2, "sdpa", "aot_eager"),
    (gpt2, "eager", "aot_eager"),
    (albert, "", "aot_eager"),
    (gemma2, "", "aot_eager"),
]


@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize(("make", "attention", "backend"), CASES)
def test_the_bits_and_the_maps(
    make: Callable[[str], nn.Module], attention: str, backend: str, mask: Tensor | None
) -> None:
    model = make(attention).eval()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        plain = compiled(IDS, attention_mask=mask).last_hidden_state
        for _ in range(2):
            with capture(model) as captured:
                found = compiled(IDS, attention_mask=mask).last_hidden_state
            assert torch.equal(found, plain)
        with capture(model) as eager:
            model(IDS, attention_mask=mask)
    assert counters["stats"]["unique_graphs"] == 2
    assert captured.explain() == ""
    assert len(captured.attention) == 2 if make is not albert else 12
    for each, wanted in zip(captured.attention, eager.attention, strict=True):
        assert each.module_path == wanted.module_path
        assert each.source == wanted.source
        np.testing.assert_allclose(each.weights(), wanted.weights(), rtol=0, atol=1e-5)
        assert each.confirmed is wanted.confirmed


def test_keys_are_kept_as_they_are_before_they_are_repeated() -> None:
    model = llama("sdpa").eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), capture(model, keep="qk") as captured:
        compiled(IDS, attention_mask=PADDED)
    for each in captured.attention:
        call: Any = each.record.read()
        assert (call.query.shape[1], call.key.shape[1]) == (4, 2)
        assert call.key.untyped_storage().nbytes() == call.key.nbytes


def test_training() -> None:
    model = llama("sdpa").train()
    compiled = torch.compile(model, backend="inductor", fullgraph=True)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        compiled(IDS, attention_mask=PADDED).last_hidden_state.square().sum().backward()
        return [each.grad.clone() for each in model.parameters() if each.grad is not None]

    plain = gradients()
    with capture(model) as captured:
        found = gradients()
    assert all(map(torch.equal, found, plain))
    assert len(captured.attention) == 2


def test_a_function_of_the_programs_own_that_nobody_can_see_through() -> None:
    def mine(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return value.repeat_interleave(2, 1).transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("mine", mine)
    model = llama("sdpa").eval()
    model.config._attn_implementation = "mine"
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), capture(model) as captured:
        compiled(IDS)
    assert len(captured.attention) == 0
    assert "the attention function 'mine' calls none that can be seen" in captured.explain()
    transformers.AttentionInterface._global_mapping.pop("mine")
