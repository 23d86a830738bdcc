"""Gradients of attention maps under fused kernels: those that autograd has in eager attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import transformers as hf

import visualizer
from tests.attention_models.families import FAMILIES, Family, build, sharpen
from visualizer.analysis import head_importance, relevance

CASES = [
    pytest.param(family, implementation, padded, id=f"{name}-{implementation}{'-padded' * padded}")
    for name, family in FAMILIES.items()
    for implementation in (["sdpa", "eager"] if family.fused else ["eager"])
    if (name, implementation) != ("falcon_alibi", "sdpa")  # is another function
    for padded in ([False, True] if family.can_pad and not family.left else [False])
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Softmaxes:
    """The maps of a model that runs eagerly, with the gradients that autograd has for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.maps: list[Any] = []
        original = torch.nn.functional.softmax

        def softmax(*args: Any, **kwargs: Any) -> Any:
            weights = original(*args, **kwargs)
            if weights.dim() == 4:
                weights.retain_grad()
                self.maps.append(weights)
            return weights

        monkeypatch.setattr(torch.nn.functional, "softmax", softmax)


def loss_of(output: Any) -> Any:
    """A number that depends on everything that the model returns, each in its own measure."""
    tensors = [value for value in output.values() if isinstance(value, torch.Tensor)]
    tensors = [tensor for tensor in tensors if tensor.requires_grad]
    generator = torch.Generator().manual_seed(2)
    return sum((each * torch.randn(each.shape, generator=generator)).sum() for each in tensors)


def eager_maps(
    model: Any, run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return weights and gradients of an eager model, in the order of its calls."""
    with monkeypatch.context() as patch:
        seen = Softmaxes(patch)
        run(model).backward()
    return [(each.detach().numpy(), each.grad.numpy()) for each in seen.maps]


@pytest.mark.parametrize(("family", "implementation", "padded"), CASES)
def test_the_gradient_is_that_of_eager_attention(
    family: Family, implementation: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = family.inputs(padded)
    expected = eager_maps(
        build(family, "eager"), lambda model: loss_of(model(**inputs)), monkeypatch
    )
    model = build(family, implementation)
    with visualizer.capture(model, gradients=True) as captured:
        loss_of(model(**inputs)).backward()
    assert len(captured.attention) == len(expected) == family.calls
    for made, (weights, gradient) in zip(captured.attention, expected, strict=True):
        keys = made.shape[3]  # sinks have a column of their own
        found = made.gradient()
        assert found.shape == made.shape
        gradient = gradient.reshape(*made.shape[:3], -1)[..., :keys]
        assert gradient.any()
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(
            found / scale, gradient / scale, atol=1e-4
        )  # T5's kernels differ so much
        both = (np.asarray(made) * found).sum(), (weights[..., :keys] * gradient).sum()
        assert abs(both[0] - both[1]) <= 1e-4 * np.abs(weights[..., :keys] * gradient).sum()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_training_is_undisturbed(implementation: str) -> None:
    family = FAMILIES["bert"]

    def train(capturing: bool) -> list[Any]:
        model = build(family, implementation).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            if capturing:
                with visualizer.capture(model, gradients=True):
                    loss = loss_of(model(**family.inputs(True)))
                    loss.backward()
            else:
                loss = loss_of(model(**family.inputs(True)))
                loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [*losses, *(each.detach() for each in model.parameters())]

    for plain, captured in zip(train(False), train(True), strict=True):
        assert torch.equal(plain, captured)


_COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_IDS = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(3))


def _bert() -> tuple[Any, dict[str, Any], int]:
    config = hf.BertConfig(vocab_size=100, **_COMMON)
    return hf.BertForMaskedLM(config), {"input_ids": _IDS}, 0


def _vit() -> tuple[Any, dict[str, Any], int]:
    config = hf.ViTConfig(image_size=32, patch_size=4, num_labels=5, **_COMMON)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    return hf.ViTForImageClassification(config), {"pixel_values": pixels}, 0


def _llama() -> tuple[Any, dict[str, Any], int]:
    config = hf.LlamaConfig(vocab_size=100, num_key_value_heads=2, use_cache=False, **_COMMON)
    return hf.LlamaForCausalLM(config), {"input_ids": _IDS}, -1


@pytest.mark.parametrize("make", [_bert, _vit, _llama])
def test_relevance_is_that_of_eager_attention(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, inputs, query = make()
    model = sharpen(model)

    def outcome(model: Any) -> Any:
        logits = model(**inputs).logits
        return 100 * (logits[0, 3] if logits.dim() == 2 else logits[0, query, 3])

    model.set_attn_implementation("eager")
    maps = eager_maps(model, outcome, monkeypatch)
    expected = np.eye(maps[0][0].shape[-1])
    for weights, gradient in maps:
        positive = np.maximum(weights.astype(np.float64) * gradient, 0).mean(1)[0]
        expected = expected + positive @ expected

    model.set_attn_implementation("sdpa")
    with visualizer.capture(model, gradients=True) as captured:
        outcome(model).backward()
    found = relevance(captured.attention, query=query)
    assert expected[query].max() > 1.01  # there is something to be wrong about
    largest = expected.max()
    np.testing.assert_allclose(found / largest, expected[query] / largest, atol=1e-6)
    np.testing.assert_allclose(
        relevance(captured.attention) / largest, expected / largest, atol=1e-6
    )
    of_arrays = relevance(
        [weights[0] for weights, _ in maps], [gradient[0] for _, gradient in maps], query=query
    )
    np.testing.assert_allclose(of_arrays / largest, expected[query] / largest, atol=1e-6)


def test_head_importance_is_the_derivative_by_a_mask_on_the_head() -> None:
    torch.manual_seed(0)
    model, inputs, _ = _bert()
    model = sharpen(model)
    with visualizer.capture(model, gradients=True) as captured:
        model(**inputs).logits[0, 0, 3].backward()
    found = head_importance(captured.attention)
    assert found.shape == (4, 1, 4)

    masks = [torch.ones(4, requires_grad=True) for _ in range(4)]
    layers = model.bert.encoder.layer
    handles = [
        layer.attention.output.register_forward_pre_hook(
            lambda _, args, mask=mask: (
                (args[0].unflatten(-1, (4, -1)) * mask[:, None]).flatten(2),
                *args[1:],
            )
        )
        for layer, mask in zip(layers, masks, strict=True)
    ]
    model(**inputs).logits[0, 0, 3].backward()
    for handle in handles:
        handle.remove()
    expected = np.stack([mask.grad.abs().numpy() for mask in masks])[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * expected.max())
