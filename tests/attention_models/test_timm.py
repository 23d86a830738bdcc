"""Models of timm, as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

import visualizer

MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "vit_tiny_patch16_224": ({"img_size": 64, "depth": 3}, 3),
    "vit_base_patch16_siglip_224": ({"img_size": 64, "depth": 2}, 3),  # and one that pools
    "deit3_small_patch16_224": ({"img_size": 64, "depth": 2}, 2),
    "vit_small_patch14_dinov2": ({"img_size": 56, "depth": 2}, 2),
    "maxvit_nano_rw_256": ({"img_size": 64}, 14),
    "swin_tiny_patch4_window7_224": ({}, 12),
}


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    """The library, beside a stand-in for torchvision where that is missing."""
    stubs = str(Path(__file__).parent.parent / "stubs")
    sys.path.append(stubs)
    yield pytest.importorskip("timm", reason="timm is not installed")
    sys.path.remove(stubs)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(stubs):
            del sys.modules[name]  # transformers would take it for the real one


def build(timm: Any, name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **MODELS[name][0]).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "qkv.weight" in parameter_name or parameter_name.endswith(
                (".q.weight", ".kv.weight")
            ):
                parameter.mul_(2)
    size = MODELS[name][0].get("img_size", 224)
    return model, torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def step_by_step(model: Any, picture: Any) -> list[np.ndarray]:
    """Return the weights out of the local `attn` of the branch that is not fused."""
    attending = [module for module in model.modules() if hasattr(module, "fused_attn")]
    for module in attending:
        module.fused_attn = False
    targets = {type(module).forward: ["attn"] for module in attending}
    taken = visualizer.capture(model, locals=targets, attention=False)
    with torch.no_grad(), taken:
        model(picture)
    order = {id(module): place for place, module in enumerate(model.modules())}
    paths = {name: order[id(module)] for name, module in model.named_modules()}
    entries = [entry for view in taken.locals.values() for entry in view["attn"]]
    return [entry.value for entry in sorted(entries, key=lambda entry: paths[entry.module_path])]


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("swin")])
def test_fused_maps_are_those_of_the_other_branch(timm: Any, name: str) -> None:
    """The error is at most 1e-5, or what the other branch's own is, measured in float64."""
    model, picture = build(timm, name)
    with torch.no_grad():
        plain = model(picture)
        with visualizer.capture(model) as captured:
            output = model(picture)
    assert torch.equal(plain, output)
    assert len(captured.attention) == MODELS[name][1], captured.explain()
    assert [made.source for made in captured.attention] == ["sdpa"] * MODELS[name][1]
    expected = step_by_step(model, picture)
    exact = step_by_step(model.double(), picture.double())
    for made, other, true in zip(captured.attention, expected, exact, strict=True):
        assert made.confirmed is True
        allowed = max(1e-5, float(np.abs(other - true).max()))
        assert np.abs(np.asarray(made) - other.reshape(made.shape)).max() <= allowed


def test_swin_has_no_fused_branch(timm: Any) -> None:
    """Its softmax is seen, and nothing proves that it is attention."""
    model, picture = build(timm, "swin_tiny_patch4_window7_224")
    where = {type(model.layers[0].blocks[0].attn).forward: ["attn"]}
    with torch.no_grad():
        plain = model(picture)
        with visualizer.capture(model, locals=where) as captured:
            output = model(picture)
    assert torch.equal(plain, output)
    taken = captured.locals["WindowAttention.forward"]["attn"]
    assert len(captured.attention) == len(taken) == 12
    for made, entry in zip(captured.attention, taken, strict=True):
        assert (made.source, made.confirmed) == ("softmax", None)
        assert made.module_path == entry.module_path
        assert made.module_path.endswith(".attn")
        assert np.array_equal(np.asarray(made), entry.value)


def test_patterns_name_the_layers(timm: Any) -> None:
    model, picture = build(timm, "vit_tiny_patch16_224")
    with torch.no_grad(), visualizer.capture(model, modules=["blocks.{layer}.mlp"]) as captured:
        model(picture)
        model(picture)
    assert list(captured.modules) == [f"blocks.{layer}.mlp" for layer in range(3)]
    entries = captured.modules["blocks.2.mlp"]
    assert [(entry.layer, entry.call, entry.step) for entry in entries] == [(2, 0, 0), (2, 1, 1)]
    assert [made.step for made in captured.attention] == [0, 0, 0, 1, 1, 1]
    assert captured.attention.paths == [f"blocks.{layer}.attn" for layer in range(3)]


def test_checkpointed_blocks_are_recorded_once(timm: Any) -> None:
    model, picture = build(timm, "vit_tiny_patch16_224")
    model.train()

    def train() -> list[Any]:
        model.zero_grad()
        for _ in range(2):
            output = model(picture)
            output.square().mean().backward()
        return [output, *(p.grad for p in model.parameters())]

    plain = train()
    model.set_grad_checkpointing()
    expected = train()
    with visualizer.capture(model, modules=["blocks.{layer}", ""]) as captured:
        found = train()
    for got, one, other in zip(found, expected, plain, strict=True):
        assert torch.equal(got, one)
        assert torch.equal(got, other)
    assert [
        (made.module_path, made.layer, made.call, made.step) for made in captured.attention
    ] == [(f"blocks.{layer}.attn", layer, step, step) for step in (0, 1) for layer in range(3)]
    for entries in captured.modules.values():
        assert [(entry.call, entry.step) for entry in entries] == [(0, 0), (1, 1)]
