"""Models and pipelines of diffusers, as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")
diffusers: Any = pytest.importorskip("diffusers", reason="diffusers is not installed")

from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.attention_processor import Attention, AttnProcessor, SlicedAttnProcessor

import visualizer
from tests.attention_models.diffusion import KINDS, autoencoder, build, clip, flux
from visualizer.errors import ShapeError

STEP_BY_STEP = [name for name in KINDS if name not in ("sd3", "flux")]
"""Those for whose attention diffusers has a processor that computes the weights."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without what diffusers says of random weights and of old configs."""
    before = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    yield
    diffusers.logging.set_verbosity(before)


def run(model: Any, inputs: dict[str, Any], dtype: Any = torch.float32) -> Any:
    """Return a model's output for inputs of a type."""

    def cast(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cast(each) for name, each in value.items()}
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float else value

    with torch.no_grad():
        return model(**cast(inputs), timestep=torch.tensor([10, 10]))[0]


def step_by_step(model: Any, forward: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Return the weights that diffusers' own eager attention computes, by the module's path."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    weights = {Attention.get_attention_scores: ["attention_probs"]}
    taken = visualizer.capture(model, locals=weights, attention=False)
    with torch.no_grad(), taken:
        forward()
    entries = taken.locals["Attention.get_attention_scores"]["attention_probs"]
    return {entry.module_path: entry.value for entry in entries}


def check_against_eager(model: Any, forward: Callable[[Any], Any]) -> None:
    """Compare all maps: the error is at most 1e-5, or what eager attention's own is in float32."""
    with torch.no_grad(), visualizer.capture(model) as captured:
        forward(torch.float32)
    eager = step_by_step(model, lambda: forward(torch.float32))
    model.double()
    exact = step_by_step(model, lambda: forward(torch.float64))
    assert len(captured.attention) == len(eager) == len(exact)
    for made in captured.attention:
        expected, true = eager[made.module_path], exact[made.module_path]
        allowed = max(1e-5, float(np.abs(expected - true).max()))
        assert np.abs(np.asarray(made).reshape(expected.shape) - expected).max() <= allowed


class Spy:
    """Computes each call's weights in float64, with plain matrices, out of what SDPA is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: list[np.ndarray] = []
        kernel = torch.nn.functional.scaled_dot_product_attention

        def spy(query: Any, key: Any, value: Any, **options: Any) -> Any:
            q, k = query.double(), key.double()
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            mask = options.get("attn_mask")
            self.weights.append(
                (scores + (0 if mask is None else mask.double())).softmax(-1).numpy()
            )
            return kernel(query, key, value, **options)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)


@pytest.mark.parametrize("name", KINDS)
def test_every_call_is_captured_and_its_map_is_softmax_in_float64(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    model, inputs = build(kind), kind.inputs()
    plain = run(model, inputs)
    with visualizer.capture(model) as captured:
        output = run(model, inputs)
    assert torch.equal(plain, output)
    assert captured.explain() == ""

    spy = Spy(monkeypatch)
    run(model, inputs)
    assert len(captured.attention) == len(spy.weights) == kind.calls
    shapes: dict[str, set[tuple[int, int]]] = {}
    for made, expected in zip(captured.attention, spy.weights, strict=True):
        assert np.abs(np.asarray(made) - expected).max() <= 1e-5
        assert (made.source, made.confirmed, made.step, made.call) == ("sdpa", True, 0, 0)
        assert isinstance(model.get_submodule(made.module_path), torch.nn.Module)
        shapes.setdefault(made.module_path.rpartition(".")[2], set()).add(made.shape[2:])
    assert shapes == kind.shapes


@pytest.mark.parametrize("name", STEP_BY_STEP)
def test_maps_are_those_of_eager_attention(name: str) -> None:
    model, inputs = build(KINDS[name]), KINDS[name].inputs()
    check_against_eager(model, lambda dtype: run(model, inputs, dtype))


@pytest.mark.parametrize("name", KINDS)
def test_maps_are_peaked(name: str) -> None:
    """So that a wrong scale, mask or order of heads would not pass above."""
    kind = KINDS[name]
    with visualizer.capture(model := build(kind)) as captured:
        run(model, kind.inputs())
    largest = [np.asarray(made).max(axis=-1).mean() * made.shape[3] for made in captured.attention]
    assert min(largest) > 1.25, largest


@pytest.mark.parametrize("name", ["unet_padded", "pixart"])
def test_padding_gets_nothing(name: str) -> None:
    kind = KINDS[name]
    with visualizer.capture(model := build(kind)) as captured:
        run(model, kind.inputs())
    for made in captured.attention:
        if made.module_path.endswith("attn2"):
            hidden = made[1, :, :, 3 if name == "unet_padded" else 4 :]
            assert hidden.size
            assert not hidden.any()
            assert made[0].all()


@pytest.mark.parametrize("name", ["unet", "sdxl"])
def test_eager_attention_is_seen_by_its_softmax(name: str) -> None:
    kind = KINDS[name]
    model, inputs = build(kind), kind.inputs()
    with visualizer.capture(model) as fused:
        run(model, inputs)
    model.set_attn_processor(AttnProcessor())
    plain = run(model, inputs)
    with visualizer.capture(model) as captured:
        output = run(model, inputs)
    assert torch.equal(plain, output)
    for made, expected in zip(captured.attention, fused.attention, strict=True):
        assert (made.source, made.confirmed) == ("softmax", None)
        assert (made.module_path, made.shape) == (expected.module_path, expected.shape)
        assert np.abs(np.asarray(made) - np.asarray(expected)).max() <= 1e-5


def test_sliced_attention_is_a_map_a_slice() -> None:
    """Four heads of two items, four at a time."""
    kind = KINDS["unet"]
    model, inputs = build(kind), kind.inputs()
    with visualizer.capture(model) as fused:
        run(model, inputs)
    model.set_attn_processor(SlicedAttnProcessor(4))
    with visualizer.capture(model) as captured:
        run(model, inputs)
    assert captured.attention.paths == fused.attention.paths
    for whole in fused.attention:
        slices = captured.attention[whole.module_path]
        assert [(made.shape[0], made.call) for made in slices] == [(1, 0), (1, 1)]
        together = np.concatenate([np.asarray(made) for made in slices])
        assert np.abs(together - np.asarray(whole)).max() <= 1e-5


@pytest.mark.parametrize("how", ["in a context", "of the model"])
@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_backends_of_the_dispatcher(how: str, backend: str) -> None:
    """They are functions in a registry, and look torch's up when they are called."""
    model, inputs = build(KINDS["flux"]), KINDS["flux"].inputs()
    with attention_backend(backend if how == "in a context" else "native"):
        if how == "of the model":
            model.set_attention_backend(backend)  # and of the process
        plain = run(model, inputs)
        with visualizer.capture(model) as captured:
            output = run(model, inputs)
    assert torch.equal(plain, output)
    assert [made.source for made in captured.attention] == ["sdpa"] * 4
    assert all(made.confirmed for made in captured.attention)


def test_a_name_bound_before_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a processor of one's own may have it."""
    from diffusers.models import attention_processor

    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention_processor, "sdpa", kernel, raising=False)
    namespace = vars(attention_processor)

    class Own:
        def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            text = kwargs.get("encoder_hidden_states")
            text = hidden_states if text is None else text
            parts = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
            q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
            mixed = namespace["sdpa"](q, k, v)
            return attn.to_out[0](mixed.transpose(1, 2).flatten(2))

    model = build(KINDS["unet"])
    model.set_attn_processor(Own())
    with visualizer.capture(model) as captured:
        run(model, KINDS["unet"].inputs())
    assert len(captured.attention) == 14
    assert namespace["sdpa"] is kernel


def test_flex_attention_of_the_dispatcher_is_told() -> None:
    """It is called directly, which nothing sees; the account says that nothing was."""
    model, inputs = build(KINDS["flux"]), KINDS["flux"].inputs()
    plain = run(model, inputs)
    with attention_backend("flex"), pytest.warns() as warned:
        with visualizer.capture(model) as captured:
            output = run(model, inputs)
    assert warned
    assert not len(captured.attention)
    assert "no attention call was seen" in captured.explain()
    assert torch.allclose(plain, output, atol=1e-4)


def test_the_attention_of_an_autoencoder() -> None:
    torch.manual_seed(0)
    model = autoencoder().eval()
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        plain = model(image).sample
        with visualizer.capture(model) as captured:
            output = model(image).sample
            model.decode(torch.randn(1, 4, 8, 8))
    assert torch.equal(plain, output)
    paths = [f"{part}.mid_block.attentions.0" for part in ("encoder", "decoder", "decoder")]
    assert [made.module_path for made in captured.attention] == paths
    assert [made.step for made in captured.attention] == [0, 0, None]  # decode() is no forward
    for made in captured.attention:
        assert made.shape == (1, 1, 64, 64)
        assert made.confirmed is True
    check_against_eager(model, lambda dtype: model(image.to(dtype)))


@pytest.mark.parametrize("guided", [False, True])
def test_a_denoising_loop_counts_its_steps(guided: bool) -> None:
    kind = KINDS["unet"]
    model, text = build(kind), kind.inputs()["encoder_hidden_states"]

    def denoise() -> Any:
        scheduler = diffusers.EulerDiscreteScheduler()
        scheduler.set_timesteps(4)
        generator = torch.Generator().manual_seed(2)
        sample = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            given = scheduler.scale_model_input(sample, timestep)
            given = given.expand(2, -1, -1, -1) if guided else given
            noise = model(given, timestep, text if guided else text[:1]).sample
            if guided:
                noise = noise[:1] + 5 * (noise[1:] - noise[:1])
            sample = scheduler.step(noise, timestep, sample).prev_sample
        return sample

    with torch.no_grad():
        plain = denoise()
        with visualizer.capture(model) as captured:
            output = denoise()
    assert torch.equal(plain, output)
    assert [made.step for made in captured.attention] == [
        step for step in range(4) for _ in range(14)
    ]
    assert [made.call for made in captured.attention] == [made.step for made in captured.attention]
    assert {len(made) for made in captured.attention} == {1 + guided}
    assert captured.attention.paths[:2] == [
        f"down_blocks.0.attentions.0.transformer_blocks.0.attn{number}" for number in (1, 2)
    ]
    first, last = (captured.attention[captured.attention.paths[1]][step] for step in (0, 3))
    assert np.abs(np.asarray(first) - np.asarray(last)).max() > 1e-3
    assert captured.explain() == ""


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_flow_matching_loop(name: str) -> None:
    model, inputs = build(KINDS[name]), KINDS[name].inputs()

    def denoise() -> Any:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(3)
        sample = inputs["hidden_states"]
        for timestep in scheduler.timesteps:
            given = {**inputs, "hidden_states": sample, "timestep": timestep.expand(2)}
            sample = scheduler.step(model(**given)[0], timestep, sample).prev_sample
        return sample

    with torch.no_grad():
        plain = denoise()
        with visualizer.capture(model) as captured:
            output = denoise()
    assert torch.equal(plain, output)
    calls = KINDS[name].calls
    assert [made.step for made in captured.attention] == [
        step for step in range(3) for _ in range(calls)
    ]
    assert all(made.confirmed for made in captured.attention)


@pytest.fixture
def stable_diffusion(tmp_path: Path) -> Any:
    torch.manual_seed(0)
    tokenizer, encoder = clip(tmp_path, 8)
    pipe = diffusers.StableDiffusionPipeline(
        vae=autoencoder().eval(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=build(KINDS["unet"]),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, **options: Any) -> np.ndarray:
    seed = torch.Generator().manual_seed(1)
    settings = {"num_inference_steps": 3, "output_type": "np", "generator": seed}
    return pipe(**{"height": 16, "width": 16, **settings, **options}).images


def test_a_pipeline(stable_diffusion: Any) -> None:
    pipe = stable_diffusion
    tokens = pipe.tokenizer.convert_ids_to_tokens(
        pipe.tokenizer("a cat dog", padding="max_length").input_ids
    )
    assert tokens[:5] == ["<|startoftext|>", "a</w>", "cat</w>", "dog</w>", "<|endoftext|>"]
    plain = draw(pipe, prompt="a cat dog")
    with visualizer.capture(pipe.unet) as captured:
        output = draw(pipe, prompt="a cat dog")
    assert np.array_equal(plain, output)
    assert [made.step for made in captured.attention] == [
        step for step in range(3) for _ in range(14)
    ]
    assert captured.explain() == ""

    with visualizer.capture(pipe.unet, keep=2) as every_other:
        draw(pipe, prompt="a cat dog")
    assert {made.step for made in every_other.attention} == {0, 2}
    assert len(every_other.attention) == 2 * 14

    cross = [made for made in captured.attention if made.module_path.endswith("attn2")]
    assert {made.shape for made in cross} == {(2, 4, 64, 8), (2, 4, 16, 8)}
    prompt = np.asarray(cross[0])
    with visualizer.capture(pipe.unet) as other:
        draw(pipe, prompt="a cat dog", negative_prompt="dog")
    changed = np.abs(np.asarray(other.attention[1]) - prompt).max(axis=(1, 2, 3))
    assert changed[0] > 1e-3 > changed[1]  # the prompt is item 1


def test_a_pipeline_without_a_model(stable_diffusion: Any) -> None:
    """Every model of it is met, and each counts its own forwards."""
    pipe = stable_diffusion
    plain = draw(pipe, prompt="a cat")
    with visualizer.capture() as captured:
        output = draw(pipe, prompt="a cat")
    assert np.array_equal(plain, output)
    steps: dict[str, set[int]] = {}
    for made in captured.attention:
        steps.setdefault(made.module_path, set()).add(made.step)
    text = {f"encoder.layers.{layer}.self_attn" for layer in (0, 1)}
    assert text < set(steps)
    assert all(steps[path] == {0, 1} for path in text)  # the prompt, and no prompt
    assert steps["mid_block.attentions.0.transformer_blocks.0.attn2"] == {0, 1, 2}
    assert len(captured.attention) == 4 + 3 * 14 + 1
    assert captured.attention[-1].shape == (1, 1, 64, 64)  # the decoder of the VAE
    assert captured.explain() == ""


def test_pipelines_of_joint_attention() -> None:
    torch.manual_seed(0)
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    vae = autoencoder().eval()
    more = dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    of_sd3 = diffusers.StableDiffusion3Pipeline(
        transformer=build(KINDS["sd3"]), scheduler=scheduler, vae=vae, **parts, **more
    )
    vae.register_to_config(shift_factor=0.0)
    text, pooled = torch.randn(1, 5, 32), torch.randn(1, 16)
    given = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
    negative = {f"negative_{name}": -value for name, value in given.items()}
    of_flux = diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel.from_config(
            {**dict(flux().config), "in_channels": 16}
        ).eval(),
        scheduler=scheduler,
        vae=vae,
        **parts,
    )
    for pipe, options, items, images in ((of_sd3, negative, 2, 16), (of_flux, {}, 1, 16)):
        pipe.set_progress_bar_config(disable=True)
        plain = draw(pipe, **given, **options)
        with visualizer.capture(pipe.transformer) as captured:
            output = draw(pipe, **given, **options)
        assert np.array_equal(plain, output)
        assert {made.step for made in captured.attention} == {0, 1, 2}
        assert len(captured.attention) == 3 * (5 if pipe is of_sd3 else 4)
        joint = [made for made in captured.attention if made.shape[3] > images]
        assert {made.shape for made in joint} == {
            (items, joint[0].shape[1], images + 5, images + 5)
        }
        assert all(made.confirmed for made in captured.attention)


def shown(figure: Any) -> list[np.ndarray]:
    """Return what a figure lays over its picture, token by token."""
    axes = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    return [np.asarray(ax.images[1].get_array()) for ax in axes[1:]]


def test_the_figure_of_a_pipeline(stable_diffusion: Any) -> None:
    plot = pytest.importorskip("visualizer.plot", reason="matplotlib is not installed")
    pipe = stable_diffusion
    with visualizer.capture(pipe.unet) as captured:
        (image,) = draw(pipe, prompt="a cat dog", height=16, width=16)
    with pytest.raises(ShapeError, match=r"\[8, 16, 64\].*attn2"):
        plot.visualize_tokens(captured.attention, image, [2], item=1)
    cross = [m for m in captured.attention if m.module_path.endswith("attn2") and m.step > 0]
    tokens = pipe.tokenizer.convert_ids_to_tokens(
        pipe.tokenizer("a cat dog", padding="max_length").input_ids
    )
    figure = plot.visualize_tokens(cross, image, [2, 3], tokens=tokens, item=1)
    sides = torch.nn.functional.interpolate
    for found, token in zip(shown(figure), (2, 3), strict=True):
        total = torch.zeros(8, 8, dtype=torch.float64)
        for made in cross:
            side = int(made.shape[2] ** 0.5)
            grid = torch.from_numpy(np.asarray(made)[1, :, :, token]).double().mean(0)
            grid = grid.view(1, 1, side, side)
            total += sides(grid, (8, 8), mode="bilinear", align_corners=False)[0, 0] / len(cross)
        assert np.abs(found - total.numpy()).max() <= 1e-6
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[1:3] == ["2: cat</w>", "3: dog</w>"]
    over = plot.visualize_tokens_over_steps(
        captured.attention["mid_block.attentions.0.transformer_blocks.0.attn2"], image, 2, item=1
    )
    assert [ax.get_title() for ax in over.axes[:3]] == ["Step 0", "Step 1", "Step 2"]


@pytest.mark.parametrize(("name", "text_first"), [("sd3", False), ("flux", True)])
def test_figures_of_joint_attention(name: str, text_first: bool) -> None:
    plot = pytest.importorskip("visualizer.plot", reason="matplotlib is not installed")
    model, inputs = build(KINDS[name]), KINDS[name].inputs()
    with visualizer.capture(model) as captured:
        run(model, inputs)
    joint = [made for made in captured.attention if made.shape[3] == 21]
    text, image = (slice(0, 5), slice(5, 21)) if text_first else (slice(16, 21), slice(0, 16))
    picture = np.zeros((8, 8, 3))
    figure = plot.visualize_tokens(joint, picture, [0, 4], item=1, queries=image, keys=text)
    for found, token in zip(shown(figure), (0, 4), strict=True):
        columns = [np.asarray(made)[1, :, image, text][..., token].mean(0) for made in joint]
        assert np.abs(found.ravel() - np.mean(columns, axis=0)).max() <= 1e-6

    moved = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"].clone()}
    moved["encoder_hidden_states"][1, 4] += 3  # of the text, its last token alone
    with visualizer.capture(model) as other:
        run(model, moved)
    change = [np.asarray(made[1, :, image]) for made in (other.attention[0], joint[0])]
    scores = np.log(change[0]) - np.log(change[1])
    scores -= scores[..., image][..., :1]  # softmax's own divisor
    keys = np.flatnonzero(np.abs(scores).max(axis=(0, 1)) > 1e-3)
    assert keys.tolist() == [text.start + 4]
