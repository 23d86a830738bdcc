"""Models of transformers, as they come: their attention is captured, and it is the eager one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import visualizer
from tests.attention_models.families import FAMILIES, Family, build

CASES = [
    pytest.param(family, implementation, padded, id=f"{name}-{implementation}{'-padded' * padded}")
    for name, family in FAMILIES.items()
    for implementation in (["sdpa", "eager"] if family.fused else ["eager"])
    if (name, implementation) != ("falcon_alibi", "sdpa")  # is another function; see below
    for padded in ([False, True] if family.can_pad else [False])
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors_of(output: Any) -> list[Any]:
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


def eager_weights(family: Family, padded: bool, dtype: Any) -> list[np.ndarray]:
    """Return the weights that eager attention computes, out of its own local variable."""
    model = build(family, "eager").to(dtype)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    inputs = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in family.inputs(padded).items()
    }
    where, variable = family.weights
    taken = visualizer.capture(model, locals={where: [variable]}, attention=False)
    with torch.no_grad(), taken:
        model(**inputs)
    entries = taken.locals[where][variable]
    return [entry.value for entry in entries]


def rows_that_see(family: Family, padded: bool) -> np.ndarray:
    """Return which queries have a key to look at, shape `(batch, query)`; all where it is None."""
    if not (padded and family.left):
        return np.ones((1, 1), dtype=bool)
    return family.inputs(True)["attention_mask"].numpy().astype(bool)


def largest_error(found: np.ndarray, expected: np.ndarray, seeing: np.ndarray) -> float:
    apart = np.abs(found - expected).max(axis=-1)
    return float(np.where(seeing[:, None], apart, 0).max())


@pytest.mark.parametrize(("family", "implementation", "padded"), CASES)
def test_maps_are_those_of_eager_attention(
    family: Family, implementation: str, padded: bool
) -> None:
    """The error is at most 1e-5, or what eager attention's own is, measured in float64."""
    model, inputs = build(family, implementation), family.inputs(padded)
    with torch.no_grad():
        plain = model(**inputs)
        with visualizer.capture(model) as captured:
            output = model(**inputs)

    for before, after in zip(tensors_of(plain), tensors_of(output), strict=True):
        assert torch.equal(before, after)
    assert len(captured.attention) == family.calls, captured.explain()
    assert all(made.module_path for made in captured.attention)
    assert captured.explain() == ""

    eager = eager_weights(family, padded, torch.float32)
    exact = eager_weights(family, padded, torch.float64)
    seeing = rows_that_see(family, padded)
    for made, expected, true in zip(captured.attention, eager, exact, strict=True):
        found = np.asarray(made)
        assert found.shape == expected.shape
        allowed = max(1e-5, largest_error(expected, true, seeing))
        assert largest_error(found, expected, seeing) <= allowed
        assert made.confirmed is (None if made.source == "softmax" else True)


@pytest.mark.parametrize("padded", [False, True])
def test_falcon_with_alibi(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fused and its eager branch compute different things, so it is held against SDPA's."""
    given: list[tuple[Any, ...]] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Any, key: Any, value: Any, **options: Any) -> Any:
        given.append((query, key, options["attn_mask"]))
        return kernel(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    family = FAMILIES["falcon_alibi"]
    with torch.no_grad(), visualizer.capture(model := build(family, "sdpa")) as captured:
        model(**family.inputs(padded))
    assert len(given) == len(captured.attention) == 3
    for made, (query, key, mask) in zip(captured.attention, given, strict=True):
        scores = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
        expected = (scores + mask.double()).softmax(-1).numpy()
        assert largest_error(np.asarray(made), expected, rows_that_see(family, padded)) <= 1e-5
        assert made.confirmed is True


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_peaked(name: str) -> None:
    """So that a wrong scale, mask or pairing of heads would not pass above."""
    family = FAMILIES[name]
    model = build(family, "eager")
    with torch.no_grad(), visualizer.capture(model) as captured:
        model(**family.inputs(False))
    strongest = [
        np.asarray(made).max(axis=-1).mean() * made.shape[-1] for made in captured.attention
    ]
    assert np.mean(strongest) > 4  # times even attention


@pytest.mark.parametrize("name", ["albert", "t5", "whisper", "clip", "llama"])
def test_paths_are_those_of_the_modules(name: str) -> None:
    family = FAMILIES[name]
    model = build(family, "sdpa")
    with torch.no_grad(), visualizer.capture(model) as captured:
        model(**family.inputs(False))
    modules = dict(model.named_modules())
    for path in captured.attention.paths:
        assert "att" in type(modules[path]).__name__.lower()
    calls = [(made.module_path, made.call) for made in captured.attention]
    assert len(set(calls)) == family.calls
    layers = 1 if name == "albert" else family.calls  # one layer, three times
    assert len(captured.attention.layers) == layers


def test_a_router_is_no_attention() -> None:
    """The experts of GPT-OSS are chosen by a softmax, too."""
    family = FAMILIES["gpt_oss"]
    model = build(family, "eager")
    with torch.no_grad(), visualizer.capture(model) as captured:
        model(**family.inputs(False))
    assert [made.source for made in captured.attention] == ["eager"] * 3


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "gemma2", "gpt_oss"])
def test_nothing_is_kept_in_the_size_of_a_map(name: str) -> None:
    """With long inputs, that is: short ones may take less as rows."""
    family = FAMILIES[name]
    model = build(family, "sdpa" if family.fused else "eager")
    ids = torch.randint(3, 90, (1, 60), generator=torch.Generator().manual_seed(0))
    inputs = {**family.inputs(False), "input_ids": ids}
    if "decoder_input_ids" in inputs:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad(), visualizer.capture(model, keep="qk") as captured:
        model(**inputs)
    for made in captured.attention:
        call = made.record.read()
        assert sum(each.shape[-2] * each.shape[-1] for each in (call.query, call.key)) > 0
        if name != "t5":  # which adds a bias of that size
            largest = max(each.numel() for each in call.tensors())
            assert largest < np.prod(made.shape)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_low_precision(name: str, dtype: str) -> None:
    """The map is that of the queries and keys as they are, computed in float32."""
    family = FAMILIES[name]
    model = build(family, "sdpa").to(getattr(torch, dtype))
    inputs = family.inputs(False)
    with torch.no_grad(), visualizer.capture(model, keep="qk") as captured:
        model(**inputs)
    for made in captured.attention:
        assert made.confirmed is True
        call = made.record.read()
        assert call.query.dtype == getattr(torch, dtype)
        heads = call.shape[1] // call.key.shape[1]
        query, key = call.query.double(), call.key.double().repeat_interleave(heads, 1)
        scores = query @ key.transpose(-1, -2) * call.scale
        if made.is_causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, -torch.inf)
        np.testing.assert_allclose(np.asarray(made), scores.softmax(-1).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "bert", "gemma2"])
def test_autocast(name: str) -> None:
    """The map is that of what the kernel is given, not of the float32 before."""
    family = FAMILIES[name]
    model, inputs = build(family, "sdpa" if family.fused else "eager"), family.inputs(False)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model(**inputs)
        with visualizer.capture(model) as captured:
            output = model(**inputs)
    assert torch.equal(plain.last_hidden_state, output.last_hidden_state)
    assert [made.confirmed for made in captured.attention] == [True] * family.calls
    for made in captured.attention:
        np.testing.assert_allclose(np.asarray(made).sum(-1), 1, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama", "qwen2", "gemma2", "clip"])
def test_flex_attention(name: str, padded: bool) -> None:
    """Its BlockMask is written out; what the map has is eager attention's."""
    family = FAMILIES[name]
    model, inputs = build(family, "flex_attention"), family.inputs(padded)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        plain = model(**inputs)
        with visualizer.capture(model) as captured:
            output = model(**inputs)
    for before, after in zip(tensors_of(plain), tensors_of(output), strict=True):
        assert torch.equal(before, after)
    assert len(captured.attention) == family.calls, captured.explain()
    eager = eager_weights(family, padded, torch.float32)
    exact = eager_weights(family, padded, torch.float64)
    seeing = rows_that_see(family, padded)
    for made, expected, true in zip(captured.attention, eager, exact, strict=True):
        assert (made.source, made.confirmed) == ("flex_attention", True)
        allowed = max(1e-5, largest_error(expected, true, seeing))
        assert largest_error(np.asarray(made), expected, seeing) <= allowed
