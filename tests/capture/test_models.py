"""Whole models: their maps are captured, and they compute what they computed before."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.capture.conftest import Recorded
from visualizer import get_local

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")
torch_models: Any = pytest.importorskip("tests.capture.torch_models")

STUBS = Path(__file__).parent.parent / "stubs"


@pytest.fixture
def vit() -> Any:
    """A transformer of 12 layers, with decorated attention; not active."""
    get_local("attn")(torch_models.Attention.forward)
    torch.manual_seed(0)
    return torch_models.VisionTransformer()


@pytest.fixture
def patches() -> Any:
    return torch.randn(1, 196, 48, generator=torch.Generator().manual_seed(1))


def gradients(model: Any, patches: Any) -> list[Any]:
    model.zero_grad()
    model(patches).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_twelve_maps_of_twelve_layers(vit: Any, patches: Any) -> None:
    expected = torch_models.attention_maps(vit, patches)
    get_local.activate()
    vit(patches)
    maps = get_local.cache["Attention.forward"]
    assert [(type(m), m.shape, m.dtype) for m in maps] == [
        (np.ndarray, (1, 6, 197, 197), np.float32)
    ] * 12
    for taken, recomputed in zip(maps, expected, strict=True):
        np.testing.assert_allclose(taken, recomputed, rtol=1e-4, atol=1e-6)
    assert not np.allclose(maps[0], maps[1])


def test_outputs_and_gradients_are_the_same_bit_for_bit(vit: Any, patches: Any) -> None:
    plain, plain_gradients = vit(patches), gradients(vit, patches)
    get_local.activate()
    captured, captured_gradients = vit(patches), gradients(vit, patches)
    get_local.deactivate()
    assert torch.equal(plain, captured)
    assert captured.grad_fn is not None
    assert len(plain_gradients) == len(captured_gradients) > 12
    for before, after in zip(plain_gradients, captured_gradients, strict=True):
        assert torch.equal(before, after)
    assert len(get_local.cache["Attention.forward"]) == 24


def test_training_is_the_same_bit_for_bit(patches: Any) -> None:
    def train() -> list[Any]:
        torch.manual_seed(0)
        model = torch_models.VisionTransformer(depth=2)
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            model(patches).square().mean().backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    plain = train()
    with get_local.patch(torch_models.Attention.forward, "q", "k", "attn"):
        captured = train()
    assert all(torch.equal(a, b) for a, b in zip(plain, captured, strict=True))
    for name in ("q", "k", "attn"):
        assert len(get_local.cache[f"Attention.forward.{name}"]) == 6


def test_half_precision_stays(vit: Any, patches: Any) -> None:
    get_local.activate()
    vit.half()(patches.half())
    vit.bfloat16()(patches.bfloat16())
    types = [taken.dtype for taken in get_local.cache["Attention.forward"]]
    assert types == [np.float16] * 12 + [np.float32] * 12


def test_values_are_not_those_of_later_steps(vit: Any, patches: Any) -> None:
    get_local.activate()
    with torch.no_grad():
        vit(patches)
        before = [m.copy() for m in get_local.cache["Attention.forward"]]
        for parameter in vit.parameters():
            parameter.add_(0.1)
        vit(patches)
    maps = get_local.cache["Attention.forward"]
    for earlier, kept in zip(before, maps[:12], strict=True):
        np.testing.assert_array_equal(earlier, kept)
    assert not np.array_equal(maps[0], maps[12])


def test_replicas_in_threads(vit: Any, patches: Any) -> None:
    """The threads of DataParallel, on the CPU: every call arrives, whole."""
    get_local("q", "k")(torch_models.Attention.forward)
    get_local.activate()
    outputs: dict[int, Any] = {}

    def run(number: int) -> None:
        with torch.no_grad():
            outputs[number] = vit(patches * number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == [0, 1, 2, 3]
    q, k, attn = (get_local.cache[f"Attention.forward.{name}"] for name in ("q", "k", "attn"))
    assert len(q) == len(k) == len(attn) == 48
    for query, key, weights in zip(q, k, attn, strict=True):
        scores = torch.from_numpy(query) @ torch.from_numpy(key).transpose(-2, -1)
        expected = (scores * query.shape[-1] ** -0.5).softmax(-1)
        np.testing.assert_allclose(weights, expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.fixture
def timm_vit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A small timm ViT; where torchvision is absent, with a stub of what timm imports from it."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        monkeypatch.syspath_prepend(str(STUBS))
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    yield timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=12).eval()
    if str(STUBS) in sys.path:
        for name in list(sys.modules):
            if name.partition(".")[0] == "torchvision":  # others ask whether it is there
                del sys.modules[name]


def timm_maps(model: Any, image: Any) -> list[Any]:
    maps: list[Any] = []

    def keep(attention: Any, inputs: tuple[Any, ...]) -> None:
        q, k, _ = attention.qkv(inputs[0]).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * attention.scale
        maps.append(scores.softmax(-1).detach().numpy())

    hooks = [block.attn.register_forward_pre_hook(keep) for block in model.blocks]
    model(image)
    for hook in hooks:
        hook.remove()
    return maps


TIMM = "timm.models.vision_transformer:Attention.forward"


def test_timm_without_fused_attention(timm_vit: Any, captured_warnings: Recorded) -> None:
    image = torch.randn(1, 3, 224, 224)
    for block in timm_vit.blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        plain = timm_vit(image)
        expected = timm_maps(timm_vit, image)
        with get_local.patch(TIMM, "attn"):
            assert torch.equal(timm_vit(image), plain)
    maps = get_local.cache["Attention.forward"]
    assert [m.shape for m in maps] == [(1, 3, 197, 197)] * 12
    for taken, recomputed in zip(maps, expected, strict=True):
        np.testing.assert_allclose(taken, recomputed, rtol=1e-4, atol=1e-6)
    assert captured_warnings == []


def test_timm_with_fused_attention_warns_once(timm_vit: Any, captured_warnings: Recorded) -> None:
    with torch.no_grad(), get_local.patch(TIMM, "attn"):
        timm_vit(torch.randn(1, 3, 224, 224))
    assert captured_warnings == []
    for _ in range(2):
        assert get_local.cache["Attention.forward"] == []
    (warning,) = captured_warnings
    assert "returned 12×, and 'attn' was never bound then" in str(warning.message)
    assert "capture(attention=True)" in str(warning.message)
    assert "timm: module.fused_attn = False" in str(warning.message)


def test_transformers_bert() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    target = "transformers.models.bert.modeling_bert:eager_attention_forward"
    with torch.no_grad(), get_local.patch(target, "attn_weights"):
        output = model(tokens, attention_mask=mask, output_attentions=True)
    maps = get_local.cache["eager_attention_forward"]
    assert len(maps) == len(output.attentions) == 3
    for taken, given in zip(maps, output.attentions, strict=True):
        np.testing.assert_array_equal(taken, given.numpy())
        assert (taken[1, :, :, 3:] == 0).all()


def test_a_model_output_of_transformers_as_a_local() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    get_local.activate()

    @get_local("outputs")
    def run(tokens: Any) -> Any:
        outputs = model(tokens)
        outputs.last_hidden_state.add_(0)
        return outputs.last_hidden_state

    with torch.no_grad():
        hidden = run(torch.tensor([[1, 2, 3]]))
    (taken,) = get_local.cache["run"]
    assert type(taken).__name__ == "BaseModelOutputWithPoolingAndCrossAttentions"
    np.testing.assert_array_equal(taken.last_hidden_state, hidden.numpy())
    hidden.zero_()
    assert np.any(taken.last_hidden_state)
