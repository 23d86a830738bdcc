"""The bundled model: what it is, what it can do, and that capturing does not change it."""

from __future__ import annotations

import json
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
torch: Any = pytest.importorskip("torch", reason="torch is not installed")
demo: Any = pytest.importorskip("visualizer.demo")
Image: Any = pytest.importorskip("PIL.Image")

from visualizer import get_local
from visualizer.demo.loading import FILES


@pytest.fixture(scope="module")
def pictures() -> Any:
    images = demo.load_scenes().images
    return torch.cat([demo.preprocess(Image.fromarray(image)) for image in images])


@pytest.fixture(scope="module")
def held_out() -> Any:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from visualizer.demo.train import held_out_scenes

    return held_out_scenes(200, seed=17)


def test_bundled_scenes_are_named_rightly(pictures: Any) -> None:
    scenes = demo.load_scenes()
    with torch.inference_mode():
        named = demo.load_model()(pictures).argmax(1)
    assert (named.numpy() == scenes.labels).mean() >= 0.9
    assert len(scenes.labels) == 12
    assert scenes.images.shape == (12, 96, 96)


def test_each_layer_gives_its_map(pictures: Any) -> None:
    model = demo.load_model()
    with get_local.patch("visualizer.demo.model:Attention.forward", "attn"), torch.no_grad():
        get_local.clear()
        model(pictures)
    maps = get_local.cache["Attention.forward"]
    assert [entry.shape for entry in maps] == [(12, 6, 145, 145)] * 6
    for entry in maps:
        np.testing.assert_allclose(entry.sum(axis=-1), 1, atol=1e-5)


def test_the_maps_are_those_of_the_weights(pictures: Any) -> None:
    """The first layer's map, computed here from its weights, is the one that comes out."""
    model = demo.load_model()
    with get_local.patch("visualizer.demo.model:Attention.forward", "attn"), torch.no_grad():
        get_local.clear()
        model(pictures[:1])
    block = model.blocks[0]
    with torch.no_grad():
        embedded = model.patch_embed(pictures[:1]).flatten(2).transpose(1, 2)
        x = block.norm1(torch.cat([model.cls_token, embedded], dim=1) + model.pos_embed)[0]
        q, k, _ = (x @ block.attn.qkv.weight.T + block.attn.qkv.bias).split(72, dim=-1)
        for head in range(6):
            part = slice(12 * head, 12 * head + 12)
            expected = (q[:, part] @ k[:, part].T / 12**0.5).softmax(-1)
            taken = get_local.cache["Attention.forward"][0][0, head]
            np.testing.assert_allclose(taken, expected, atol=1e-5)


def test_output_is_the_same_bit_for_bit(pictures: Any) -> None:
    model = demo.load_model()
    with torch.no_grad():
        plain = model(pictures)
        get_local.activate()
        captured = model(pictures)
        get_local.deactivate()
    get_local.clear()
    assert torch.equal(plain, captured)


def test_held_out_digits_are_named_rightly(held_out: Any) -> None:
    from visualizer.demo.train import accuracy

    assert accuracy(demo.load_model(), held_out) >= 0.95
    torch.manual_seed(0)
    assert accuracy(demo.VisionTransformer().eval(), held_out) <= 0.3


def test_what_ships_is_small_and_described() -> None:
    weights = FILES / "digits_vit.safetensors"
    assert weights.stat().st_size <= 2 * 2**20
    card = (FILES / "MODEL_CARD.md").read_text(encoding="utf-8")
    for fact in ("Data", "Split", "seed 0", "Accuracy", "python -m visualizer.demo.train"):
        assert fact in card
    described = json.loads((FILES / "scenes.json").read_text(encoding="utf-8"))
    assert all((FILES / scene["file"]).is_file() for scene in described)


@pytest.mark.parametrize("size", [(96, 96), (200, 100), (100, 200), (30, 31)])
def test_preprocess_takes_the_centre_square(size: tuple[int, int]) -> None:
    """A picture that is white in its centre square and gray elsewhere comes out white."""
    picture = Image.new("RGB", size, (90, 90, 90))
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    picture.paste((255, 255, 255), (left, top, left + side + 1, top + side + 1))
    made = demo.preprocess(picture)
    assert made.shape == (1, 1, 96, 96)
    assert made[..., 4:-4, 4:-4].min() == made.max() == pytest.approx((1 - 0.25) / 0.35)


def test_bundled_scene_passes_through_unchanged() -> None:
    image = demo.load_scenes().images[0]
    made = demo.preprocess(Image.fromarray(image))[0, 0]
    np.testing.assert_allclose(made * 0.35 + 0.25, image / 255, atol=1e-6)
