"""`generate` of transformers: every step's maps are captured, are eager attention's, and join."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")
hf: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import visualizer
from tests.attention_models.generators import (
    ENCODERS,
    GENERATORS,
    PROMPT,
    STEPS,
    attentions_of,
    build,
    prompt,
)
from visualizer import analysis
from visualizer.attention import join_steps
from visualizer.errors import NotStepsError, OverwrittenError
from visualizer.plot import plot_entropy, visualize_head

LAYERS = 2
DECODERS = [name for name in GENERATORS if name not in ENCODERS]
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "none": {"use_cache": False},
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 2},
}
CASES = [
    *(
        (name, cache, "greedy", padded)
        for name in GENERATORS
        for cache in CACHES
        for padded in (0, 1)
    ),
    *(
        (name, cache, way, 0)
        for name in ("llama", "gemma3", "bart")
        for cache in ("dynamic", "static")
        for way in ("sampling", "beams")
    ),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generate(model: Any, inputs: dict[str, Any], steps: int = STEPS, **options: Any) -> Any:
    torch.manual_seed(3)  # of the sampling
    length = {"max_new_tokens": steps, "min_new_tokens": steps}
    with torch.no_grad():
        return model.generate(**inputs, **{"do_sample": False, **length, **options})


def eager(name: str, dtype: Any, inputs: dict[str, Any], **options: Any) -> Any:
    model = build(name, "eager").to(dtype)
    return generate(model, inputs, output_attentions=True, return_dict_in_generate=True, **options)


def largest_error(found: Any, expected: Any, sees: Any) -> float:
    """Return the largest difference of rows; what padding looks at is no matter."""
    apart = np.abs(np.asarray(found, dtype=np.float64) - np.asarray(expected)).max(-1)
    return float(np.where(sees, apart, 0).max())


def sees(made: Any, padded: bool) -> Any:
    """Return which rows are of a token, shape `(batch, 1, query)`: padding lies on the left."""
    result = np.ones((made.shape[0], 1, made.shape[2]), dtype=bool)
    if padded and made.shape[2] >= PROMPT:
        result[1, :, :4] = False
    return result


@pytest.mark.parametrize(("name", "cache", "way", "padded"), CASES)
def test_late_reads_are_eager_attention(name: str, cache: str, way: str, padded: bool) -> None:
    """The error is at most 1e-5, or what eager attention's own is, measured in float64."""
    model, inputs = build(name), prompt(padded=bool(padded))
    options = {**CACHES[cache], **WAYS[way]}
    plain = generate(model, inputs, **options)
    with visualizer.capture(model) as captured:
        output = generate(model, inputs, **options)
    assert torch.equal(plain, output)
    assert captured.explain() == ""

    single = eager(name, torch.float32, inputs, **options)
    assert torch.equal(single.sequences, output)
    expected = exact = attentions_of(single)
    if not padded:  # where a row sees nothing, eager attention in float64 makes NaN of all
        double = eager(name, torch.float64, inputs, **options)
        assert torch.equal(double.sequences, output)
        exact = attentions_of(double)
    assert len(captured.attention) == len(expected)
    for made, eagers, true in zip(captured.attention, expected, exact, strict=True):
        assert made.shape == tuple(eagers.shape)
        rows = sees(made, bool(padded))
        allowed = max(1e-5, largest_error(eagers, true, rows))
        assert largest_error(made, true, rows) <= allowed
        assert made.confirmed is True


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", GENERATORS)
def test_each_step_has_a_map_of_each_layer(name: str, cache: str) -> None:
    model = build(name)
    with visualizer.capture(model) as captured:
        generate(model, prompt(), **CACHES[cache])
    encoders = ENCODERS.get(name, 0)
    kinds = 2 if encoders else 1  # a decoder of two sides attends to itself, and to the encoder
    assert len(captured.attention) == encoders + STEPS * LAYERS * kinds
    modules = dict(model.named_modules())
    for layer, path in enumerate(captured.attention.paths):
        assert "Attention" in type(modules[path]).__name__
        maps = captured.attention[path]
        assert {each.layer for each in maps} == {layer}
        if layer < encoders:  # the encoder is called on its own
            assert [(each.call, each.step) for each in maps] == [(0, None)]
        else:
            assert [(each.call, each.step) for each in maps] == [(n, n) for n in range(STEPS)]


@pytest.mark.parametrize("form", ["auto", "qk", "rows", "weights"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "t5"])
def test_a_static_cache_that_is_used_again(name: str, form: str) -> None:
    """It is emptied and filled anew, in place, by the next generation."""
    model, inputs = build(name), prompt()
    other = {**inputs, "input_ids": inputs["input_ids"].flip(-1)}
    with visualizer.capture(model, keep=form) as captured:
        generate(model, inputs, cache_implementation="static")
    generate(model, other, cache_implementation="static")
    expected = attentions_of(eager(name, torch.float32, inputs, cache_implementation="static"))
    assert len(captured.attention) == len(expected)
    for made, eagers in zip(captured.attention, expected, strict=True):
        np.testing.assert_allclose(np.asarray(made), eagers.numpy(), atol=5e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("form", ["auto", "qk"])
@pytest.mark.parametrize("length", [PROMPT, PROMPT + 3])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_cache_that_a_prompt_fills_is_written_to_later(
    name: str, length: int, form: str, mode: Any
) -> None:
    """It has as many keys as queries then, or not many more, and is the program's memory."""
    model, inputs = build(name), prompt()
    cache = hf.StaticCache(config=model.config, max_cache_len=length)
    with mode(), visualizer.capture(model, keep=form) as captured:
        model(**inputs, past_key_values=cache)
        cache.reset()
    found = [np.asarray(each) for each in captured.attention]
    expected = build(name, "eager")(**inputs, output_attentions=True, use_cache=False).attentions
    for each, eagers in zip(found, expected, strict=True):
        np.testing.assert_allclose(each[..., :PROMPT], eagers.detach().numpy(), atol=1e-5)
        assert not each[..., PROMPT:].any()


def test_keys_that_are_overwritten_are_never_misread() -> None:
    """What is kept by reference, since it does not look like a cache, says so when it is read."""
    model, kept = build("llama"), []
    rotate = hf.models.llama.modeling_llama.apply_rotary_pos_emb

    def spy(*args: Any, **options: Any) -> Any:
        query, key = rotate(*args, **options)
        kept.append(key)
        return query, key

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(hf.models.llama.modeling_llama, "apply_rotary_pos_emb", spy)
        with visualizer.capture(model) as captured:
            model(**prompt(length=300), use_cache=False)
        kept[1].zero_()
    assert captured.attention[0].confirmed
    with pytest.raises(OverwrittenError):
        np.asarray(captured.attention[1])


@pytest.mark.parametrize("name", ["llama", "gemma3", "bart"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_under_inference_mode(name: str, cache: str) -> None:
    """Its tensors don't tell when they are written to."""
    model, inputs = build(name), prompt()
    with torch.inference_mode(), visualizer.capture(model) as captured:
        generate(model, inputs, **CACHES[cache])
    expected = attentions_of(eager(name, torch.float32, inputs, **CACHES[cache]))
    for made, eagers in zip(captured.attention, expected, strict=True):
        np.testing.assert_allclose(np.asarray(made), eagers.numpy(), atol=1e-5)


def live_bytes() -> int:
    """Return the bytes of the storages of all tensors there are."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return sum(each.nbytes() for each in storages.values())


@pytest.mark.parametrize("length", [PROMPT, 512])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_no_more_is_held_than_the_rows(name: str, cache: str, length: int) -> None:
    """`captured.nbytes`, and what is there afterwards that was not before."""
    model, inputs = build(name), prompt(length=length)
    cached = CACHES[cache]
    generate(model, inputs, 2, **cached)  # what is made once does not count
    model._cache = None  # a static cache is kept for the next generation
    before = live_bytes()
    with visualizer.capture(model) as captured:
        output = generate(model, inputs, 64, **cached)
    model._cache = None
    live = live_bytes() - before - output.nbytes
    maps = list(captured.attention)
    assert len(maps) == 64 * LAYERS
    rows = sum(4 * np.prod(each.shape) for each in maps)
    assert 0 < captured.nbytes <= 1.1 * rows
    assert live <= 1.1 * rows
    for made in maps:
        made.weights(max_bytes=made.nbytes)
    assert captured.nbytes <= 1.1 * rows


def whole_map(name: str, dtype: Any, tokens: Any, mask: Any, layer: int) -> Any:
    """Return the map of whole texts, which eager attention computes at once, without padding."""
    tokens = tokens[:, :-1]  # the last is no query
    model, size = build(name, "eager").to(dtype), tokens.shape[1]
    result = torch.zeros(len(tokens), 4, size, size, dtype=dtype)
    for item, text in enumerate(tokens):
        first = int((mask[item] == 0).sum())
        with torch.no_grad():
            output = model(text[None, first:], use_cache=False, output_attentions=True)
        result[item, :, first:, first:] = output.attentions[layer][0]
    return result


def check_joined(name: str, captured: Any, output: Any, mask: Any) -> None:
    """Hold the joined maps of all layers against those of the whole text."""
    padded = not bool(mask.all())
    assert len(captured.attention.paths) == LAYERS
    for layer, path in enumerate(captured.attention.paths):
        made = captured.attention.joined(path)
        expected = whole_map(name, torch.float32, output, mask, layer)
        exact = whole_map(name, torch.float64, output, mask, layer)
        assert made.shape == tuple(expected.shape)
        rows = sees(made, padded)
        allowed = max(1e-5, largest_error(expected, exact, rows))
        assert largest_error(made, exact, rows) <= allowed
        assert (made.module_path, made.layer, made.call, made.step) == (path, layer, 0, 0)
        assert made.confirmed is True
        if not padded:  # padding may be even over all keys, as eager attention leaves it
            assert made.is_causal is True


@pytest.mark.parametrize("chunks", [0, 5])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", DECODERS)
def test_joined_steps_are_the_map_of_the_whole_text(
    name: str, cache: str, padded: bool, chunks: int
) -> None:
    """Which eager attention computes at once, without a cache."""
    model, inputs = build(name), prompt(padded=padded)
    options = {**CACHES[cache], **({"prefill_chunk_size": chunks} if chunks else {})}
    with visualizer.capture(model) as captured:
        output = generate(model, inputs, **options)
    check_joined(name, captured, output, inputs["attention_mask"])


@pytest.mark.parametrize("form", ["qk", "rows"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_joined_from_every_form(name: str, cache: str, implementation: str, form: str) -> None:
    """Also where eager attention gives padding even weights, over places that are not filled."""
    model, inputs = build(name, implementation), prompt(padded=True)
    with visualizer.capture(model, keep=form) as captured:
        output = generate(model, inputs, **CACHES[cache])
    check_joined(name, captured, output, inputs["attention_mask"])


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_joined_steps_of_a_decoder_with_an_encoder(name: str, cache: str) -> None:
    model, inputs = build(name), prompt()
    with visualizer.capture(model) as captured:
        output = generate(model, inputs, **CACHES[cache])
    with torch.no_grad():
        at_once = build(name, "eager")(
            **inputs, decoder_input_ids=output[:, :-1], output_attentions=True, use_cache=False
        )
    paths = [path for path in captured.attention.paths if "decoder" in path]
    own, cross = paths[::2], paths[1::2]
    for path, expected in zip(own, at_once.decoder_attentions, strict=True):
        made = captured.attention.joined(path)
        np.testing.assert_allclose(np.asarray(made), expected.numpy(), atol=5e-5)
    for path, expected in zip(cross, at_once.cross_attentions, strict=True):
        made = captured.attention.joined(path, cross=True)
        assert made.shape == (2, 4, STEPS, PROMPT)
        np.testing.assert_allclose(np.asarray(made), expected.numpy(), atol=5e-5)
        with pytest.raises(NotStepsError, match="cross=True"):
            captured.attention.joined(path)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_conversation_that_goes_on(name: str) -> None:
    """The cache has tokens from before the block."""
    model, inputs = build(name), prompt()
    cache = hf.DynamicCache(config=model.config)
    begun = generate(model, inputs, past_key_values=cache)
    past = cache.get_seq_length()
    said = torch.cat([begun, torch.full((2, 3), 5)], dim=1)
    mask = torch.ones_like(said)
    with visualizer.capture(model) as captured:
        output = generate(model, {"input_ids": said, "attention_mask": mask}, past_key_values=cache)
    path = captured.attention.paths[1]
    made = captured.attention.joined(path, past=past)
    expected = whole_map(name, torch.float64, output, mask, 1)[:, :, past:]
    assert made.shape == tuple(expected.shape)
    np.testing.assert_allclose(np.asarray(made), expected.numpy(), atol=1e-5)
    with pytest.raises(NotStepsError, match="past"):
        captured.attention.joined(path)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "mistral", "t5"])
def test_several_generations_are_joined_one_by_one(name: str, cache: str) -> None:
    model, inputs = build(name), prompt()
    with visualizer.capture(model) as captured:
        for _ in range(2):
            output = generate(model, inputs, **CACHES[cache])
    path = [each for each in captured.attention.paths if "encoder" not in each][-1]
    if name == "t5":
        path = "decoder.block.1.layer.0.SelfAttention"
    with pytest.raises(NotStepsError, match="another generation"):
        captured.attention.joined(path)
    maps = captured.attention[path]
    first, second = join_steps(maps[:STEPS]), join_steps(maps[STEPS:])
    assert (first.call, second.call) == (0, STEPS)
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    if name != "t5":
        expected = whole_map(name, torch.float64, output, inputs["attention_mask"], 1)
        np.testing.assert_allclose(np.asarray(second), expected.numpy(), atol=1e-5)


def test_without_a_cache_the_last_map_is_the_whole() -> None:
    model, inputs = build("llama"), prompt()
    with visualizer.capture(model) as captured:
        output = generate(model, inputs, use_cache=False)
    path = captured.attention.paths[0]
    with pytest.raises(NotStepsError, match="use_cache=False"):
        captured.attention.joined(path)
    expected = whole_map("llama", torch.float64, output, inputs["attention_mask"], 0)
    last = captured.attention[path][-1]
    np.testing.assert_allclose(np.asarray(last), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("keep", "says"), [("last", "not kept"), (2, "keep=")])
def test_where_steps_are_left_out(keep: Any, says: str) -> None:
    model = build("llama")
    with visualizer.capture(model, keep=keep) as captured:
        generate(model, prompt())
    with pytest.raises(NotStepsError, match=says):
        captured.attention.joined(captured.attention.paths[0])


def test_drafts_that_are_rejected() -> None:
    """The cache is cut back then, and there is no one map."""
    model = build("llama")
    ids = torch.randint(3, 8, (1, 24), generator=torch.Generator().manual_seed(0))
    with visualizer.capture(model) as captured:
        generate(model, {"input_ids": ids}, prompt_lookup_num_tokens=3)
    maps = captured.attention[captured.attention.paths[0]]
    assert any(each.shape[2] > 1 for each in maps)
    with pytest.raises(NotStepsError, match="assisted decoding"):
        join_steps(maps)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_without_a_model(cache: str) -> None:
    model, inputs = build("llama"), prompt()
    with visualizer.capture() as captured:
        output = generate(model, inputs, **CACHES[cache])
    assert [m.step for m in captured.attention] == [n for n in range(STEPS) for _ in range(LAYERS)]
    check_joined("llama", captured, output, inputs["attention_mask"])


def test_a_joined_map_is_a_map() -> None:
    model, inputs = build("mistral"), prompt()
    with visualizer.capture(model) as captured:
        output = generate(model, inputs)
    maps = [captured.attention.joined(path) for path in captured.attention.paths]
    for layer, made in enumerate(maps):
        expected = whole_map("mistral", torch.float64, output, inputs["attention_mask"], layer)
        array = expected.numpy()
        np.testing.assert_allclose(made.entropy(), analysis.entropy(array), atol=1e-4)
        np.testing.assert_allclose(made.received(), array.mean(axis=2), atol=1e-5)
        np.testing.assert_allclose(analysis.mass(made, 0), array[..., 0], atol=1e-5)
        np.testing.assert_allclose(made[1, 2, 15, 3:], array[1, 2, 15, 3:], atol=1e-5)
    rolled = analysis.rollout(maps, item=0)
    assert rolled.shape == (PROMPT + STEPS - 1,) * 2
    picture = visualize_head(maps[0], head=1, item=0).images[0].get_array()
    np.testing.assert_allclose(picture, maps[0][0, 1], atol=1e-6)
    assert plot_entropy(maps).figure is not None
