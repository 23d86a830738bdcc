"""transformers' attention registry: seen, restored, checked, and what it hides is reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
from transformers.models.bert import modeling_bert

from tests.block.samples import changes, everything
from visualizer import capture
from visualizer.errors import MapRefusedError, NoGradientError, OutOfRangeError

TOKENS = torch.arange(12).reshape(2, 6)


def make_model(implementation: str = "sdpa", **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        vocab_size=50,
        attn_implementation=implementation,
        initializer_range=0.3,
        **more,
    )
    return transformers.BertModel(config).eval()


def call(model: Any, **more: Any) -> Tensor:
    with torch.no_grad():
        return model(TOKENS, **more).last_hidden_state


@pytest.fixture
def register() -> Iterator[Any]:
    """Register attention functions, which are gone after the test."""
    before = dict(ALL_ATTENTION_FUNCTIONS._global_mapping)
    yield ALL_ATTENTION_FUNCTIONS.register
    ALL_ATTENTION_FUNCTIONS._global_mapping.clear()
    ALL_ATTENTION_FUNCTIONS._global_mapping.update(before)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_registry_is_seen_and_restored(implementation: str, padded: bool) -> None:
    model = make_model(implementation)
    more = {}
    if padded:
        more["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    plain = call(model, **more)
    before = everything(model)
    with capture(model, modules=["encoder.layer.{layer}"]) as captured:
        assert torch.equal(call(model, **more), plain)
        assert changes(before, everything(model))
    assert changes(before, everything(model)) == []
    assert [(m.layer, m.call, m.source, m.confirmed) for m in captured.attention] == [
        (0, 0, implementation, True),
        (1, 0, implementation, True),
    ]
    assert captured.attention.paths == [f"encoder.layer.{i}.attention.self" for i in range(2)]
    assert captured.explain() == ""
    if padded:
        assert np.asarray(captured.attention[0])[1, :, :, 4:].max() == 0


def test_both_implementations_give_the_same_maps() -> None:
    maps = []
    for implementation in ("sdpa", "eager"):
        model = make_model(implementation)
        with capture(model) as captured:
            call(model)
        maps.append([np.asarray(m) for m in captured.attention])
    for one, other in zip(*maps, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_the_weights_that_eager_attention_returns() -> None:
    model = make_model("eager")
    with torch.no_grad(), capture(model) as captured:
        attentions = model(TOKENS, output_attentions=True).attentions
    for made, expected in zip(captured.attention, attentions, strict=True):
        np.testing.assert_allclose(np.asarray(made), expected.numpy(), atol=2e-6)


def test_an_exception_in_an_attention_function(register: Any) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    register("fails", fails)
    model = make_model()
    model.set_attn_implementation("fails")
    before = everything(model)
    with pytest.raises(KeyboardInterrupt), capture(model):
        call(model)
    assert changes(before, everything(model)) == []
    model.set_attn_implementation("sdpa")
    with capture(model) as captured:
        call(model)
    assert len(captured.attention) == 2


def hidden_kernel(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **_: Any) -> Any:
    weights = torch.ops.aten._softmax(q @ k.mT / q.shape[-1] ** 0.5, -1, False)
    return (weights @ v).transpose(1, 2), None


def test_a_function_with_a_hidden_kernel_is_reported(register: Any) -> None:
    register("hidden", hidden_kernel)
    model = make_model()
    model.set_attn_implementation("hidden")
    plain = call(model)
    with capture(model) as captured:
        assert torch.equal(call(model), plain)
        call(model)
    assert len(captured.attention) == 0
    text = captured.explain()
    assert "attention of 'encoder.layer.0.attention.self' was out of sight" in text
    assert "2×" in text
    assert "the attention function 'hidden' calls none that can be seen" in text
    with pytest.raises(OutOfRangeError, match="out of sight"):
        captured.attention[0]


def test_a_function_of_the_user_that_calls_one_that_is_seen(register: Any) -> None:
    def mine(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **_: Any) -> Any:
        return F.scaled_dot_product_attention(2 * q, k, v).transpose(1, 2), None

    register("mine", mine)
    register("sdpa", mine)  # also under a name that we know
    for name in ("mine", "sdpa"):
        model = make_model()
        model.set_attn_implementation(name)
        with capture(model) as captured:
            call(model)
        assert [m.source for m in captured.attention] == ["sdpa", "sdpa"]
        assert [m.confirmed for m in captured.attention] == [True, True]
        assert captured.attention.paths[0] == "encoder.layer.0.attention.self"


CORRUPTIONS = {
    "q": lambda q, k, v, mask, kw: (1.5 * q, k, v, mask, kw),
    "k": lambda q, k, v, mask, kw: (q, k.roll(1, 2), v, mask, kw),
    "one query": lambda q, k, v, mask, kw: (q * torch.linspace(1.5, 3, 6)[:, None], k, v, mask, kw),
    "mask": lambda q, k, v, mask, kw: (q, k, v, torch.eye(6).bool() ^ True, kw),
    "scale": lambda q, k, v, mask, kw: (q, k, v, mask, {**kw, "scale": 0.9}),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("keep", ["qk", "rows", "auto"])
def test_what_is_corrupted_below_the_registry_is_refused(
    name: str, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = F.scaled_dot_product_attention

    def between(q: Any, k: Any, v: Any, attn_mask: Any = None, **kw: Any) -> Any:
        q, k, v, attn_mask, kw = CORRUPTIONS[name](q, k, v, attn_mask, kw)
        return real(q, k, v, attn_mask=attn_mask, **kw)

    monkeypatch.setattr(F, "scaled_dot_product_attention", between)
    model = make_model()
    for _ in range(3):
        captured = capture(model, keep=keep)
        with pytest.raises(MapRefusedError, match="encoder.layer.0.attention.self', call 0"):
            with captured:
                call(model)
            np.asarray(captured.attention[0])
        for made in captured.attention:
            with pytest.raises(MapRefusedError):
                np.asarray(made)


def test_corrupted_eager_attention_gives_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    real = modeling_bert.eager_attention_forward
    returned = []

    def between(module: Any, q: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = real(module, 2 * q, *args, **kwargs)
        returned.append(result[1])
        return result

    monkeypatch.setattr(modeling_bert, "eager_attention_forward", between)
    model = make_model("eager")
    with capture(model) as captured:
        call(model)
        call(model)
    assert len(captured.attention) == 4
    for made, weights in zip(captured.attention, returned, strict=True):
        np.testing.assert_allclose(np.asarray(made), weights.numpy(), atol=1e-6)


def test_eager_attention_whose_weights_are_not_what_it_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither queries and keys nor the returned weights explain the output of dropped weights."""
    model = make_model("eager", attention_probs_dropout_prob=0.5).train()
    with capture(model) as captured:
        model(TOKENS)
    assert [m.confirmed for m in captured.attention] == [None, None]
    np.testing.assert_allclose(np.asarray(captured.attention[0]).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("is_gated", [False, True])
def test_the_gradient_of_weights_whose_output_was_changed(
    is_gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An output that is more than weights times values says nothing of their gradient."""
    real = modeling_bert.eager_attention_forward

    def gated(*args: Any, **kwargs: Any) -> Any:
        output, weights = real(*args, **kwargs)
        return (output * 2 if is_gated else output * 1), weights

    monkeypatch.setattr(modeling_bert, "eager_attention_forward", gated)
    model = make_model("eager")
    with capture(model, gradients=True) as captured:
        model(TOKENS).last_hidden_state[:, 0, 0].sum().backward()
    for made in captured.attention:
        assert made.confirmed
        if is_gated:
            with pytest.raises(NoGradientError, match="not its weights times its values"):
                made.gradient(0)
        else:
            assert np.abs(made.gradient(0)).max() > 0


def test_a_registry_that_somebody_looks_at_during_the_block() -> None:
    with capture():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"].__name__ == "sdpa_attention_forward"
        function = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)
        assert callable(function)
        assert "sdpa" in ALL_ATTENTION_FUNCTIONS.valid_keys()
    assert AttentionInterface.get_interface(ALL_ATTENTION_FUNCTIONS, "sdpa", None).__name__ == (
        "sdpa_attention_forward"
    )


def test_a_model_that_is_made_in_the_block() -> None:
    with capture() as captured:
        model = make_model()
        call(model)
    assert len(captured.attention) == 2
    assert captured.attention[0].module_path == "encoder.layer.0.attention.self"
    with capture(model) as captured:
        call(model)
    assert len(captured.attention) == 2


def test_transformers_own_checkpointing_is_recorded_once() -> None:
    model = make_model().train()
    model.gradient_checkpointing_enable()
    with capture(model) as captured:
        for _ in range(2):
            model(TOKENS).last_hidden_state.sum().backward()
    assert [(m.layer, m.call, m.step) for m in captured.attention] == [
        (layer, step, step) for step in range(2) for layer in range(2)
    ]


def test_an_attention_function_that_can_not_be_hashed() -> None:
    class Function:
        __hash__ = None  # type: ignore[assignment]

        def __call__(
            self, module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
        ):
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2), None

    AttentionInterface.register("visualizer_unhashable", Function())
    try:
        model = make_model("visualizer_unhashable")
        with torch.no_grad(), capture(model) as captured:
            model(TOKENS)
    finally:
        del AttentionInterface._global_mapping["visualizer_unhashable"]
    assert [made.source for made in captured.attention] == ["sdpa"] * 2
