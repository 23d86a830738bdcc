"""The JSON file, and that what reads such files can read it."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import visualizer
from tests.attention_models.test_timm import timm  # noqa: F401  (a fixture)
from tests.block.samples import SoftmaxAttention, Tiny, numbers
from tests.store.exporting import (
    TOKENS,
    Hostile,
    bert,
    captured_llama,
    fresh_and_loaded,
    llama,
    odd_values,
)
from visualizer.errors import ExportTooLargeError, ShapeError, StoreExistsError, StoreWriteError
from visualizer.store import json_file
from visualizer.store.module_names import category_of, layer_of, pattern_of


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    assert len(found) == len(pairs), "a key is there twice"
    return found


def read(path: Path) -> Any:
    text = path.read_text("ascii")
    return json.loads(text, parse_constant=refuse, object_pairs_hook=refuse_twice)


def save(captured: Any, folder: Path, **options: Any) -> Any:
    captured.save_json(folder / "out.json", overwrite=True, **options)
    return read(folder / "out.json")


def as_bertviz_reads_it(document: Any) -> list[Tensor]:
    """Return what bertviz's `head_view` makes of element 1: heads × seq × seq, for each layer."""
    attention = []
    for module in document["captured"]["attention_outputs"].values():
        weights = torch.tensor(module["output"][1])
        assert weights.dim() == 4 and weights.shape[0] == 1
        attention.append(weights.squeeze(0))
    return attention


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_structure(tmp_path: Path, implementation: str, dtype: str) -> None:
    captured = captured_llama(implementation, getattr(torch, dtype))
    document = save(captured, tmp_path, model="Qwen/Qwen2.5-0.5B", prompt="Once", input_ids=TOKENS)
    assert list(document) == [
        "model",
        "prompt",
        "input_ids",
        "selected_patterns",
        "selected_modules",
        "captured",
        "capture_summary",
    ]
    assert document["model"] == "Qwen/Qwen2.5-0.5B" and document["prompt"] == "Once"
    assert document["input_ids"] == TOKENS.tolist()
    assert document["selected_patterns"] == {
        "attention": ["model.layers.{layer}.self_attn"],
        "mlp": ["model.layers.{layer}.mlp"],
        "other": ["model.norm"],
    }
    modules = {
        "attention": [f"model.layers.{n}.self_attn" for n in range(3)],
        "mlp": [f"model.layers.{n}.mlp" for n in range(3)],
        "other": ["model.norm"],
    }
    assert document["selected_modules"] == modules
    assert {key: list(found) for key, found in document["captured"].items()} == {
        f"{category}_outputs": paths for category, paths in modules.items()
    }
    assert document["capture_summary"] == {
        "num_modules_selected": 7,
        "num_modules_captured": 7,
        "attention_captured": 3,
        "mlp_captured": 3,
        "other_captured": 1,
        "capture_keys": [path for paths in modules.values() for path in paths],
    }
    for path in modules["mlp"]:
        found = document["captured"]["mlp_outputs"][path]
        assert set(found) == {"output", "input"}
        assert found["output"] == captured.modules[path][0].value.tolist()
        assert found["input"] == [captured.inputs[path][0].value.args[0].tolist()]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_element_1_is_what_bertviz_draws(tmp_path: Path, implementation: str) -> None:
    captured = captured_llama(implementation)
    document = save(captured, tmp_path)
    layers = as_bertviz_reads_it(document)
    assert [layer.shape for layer in layers] == [(4, 6, 6)] * 3
    with torch.no_grad():
        known = llama("eager")(TOKENS, output_attentions=True).attentions
    for layer, expected, (made,) in zip(layers, known, captured.attention.layers, strict=True):
        assert torch.allclose(layer, expected[0], atol=1e-5)
        if implementation == "sdpa":
            assert np.array_equal(layer.numpy(), made.weights(item=0))
        else:
            entry = captured.modules[made.module_path][0]
            assert np.array_equal(layer.numpy(), entry.value[1][0])
    for path, found in document["captured"]["attention_outputs"].items():
        output = captured.modules[path][0].value[0]
        assert len(found["output"]) == 2 and found["output"][0] == output.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_capture_makes_the_same_file(tmp_path: Path, dtype: str) -> None:
    captured = captured_llama(dtype=getattr(torch, dtype), forwards=2)
    fresh, loaded = fresh_and_loaded(captured, tmp_path)
    one, two = fresh.save_json(tmp_path / "1.json"), loaded.save_json(tmp_path / "2.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert one.left_out == two.left_out and one.nbytes == two.nbytes
    assert {each.name.rpartition(".")[2] for each in one.left_out} == {"kwargs['past_key_values']"}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "modules", [["**.attention"], ["**.self"], ["**.intermediate"], ["**.attention", "**.self"]]
)
def test_bert(tmp_path: Path, implementation: str, modules: list[str]) -> None:
    model = bert(implementation)
    with torch.no_grad(), visualizer.capture(model, modules=modules) as captured:
        model(TOKENS)
    document = save(captured, tmp_path)
    layers = as_bertviz_reads_it(document)
    assert len(layers) == (4 if len(modules) == 2 else 2)
    with torch.no_grad():
        known = bert("eager")(TOKENS, output_attentions=True).attentions
    paths = list(document["captured"]["attention_outputs"])
    for path, layer in zip(paths, layers, strict=True):
        assert torch.allclose(layer, known[int(path.split(".")[2])][0], atol=1e-5)
    assert len(document["captured"]["mlp_outputs"]) == 2 * ("**.intermediate" in modules)


def test_timm_has_weights_beside_the_output(tmp_path: Path, timm: Any) -> None:  # noqa: F811
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=3)
    taken = visualizer.capture(model.eval(), modules=["blocks.*.attn", "blocks.*"])
    with torch.no_grad(), taken as captured:
        model(torch.randn(1, 3, 64, 64))
    document = save(captured, tmp_path)
    for layer, (made,) in enumerate(captured.attention.layers):
        output, weights = document["captured"]["attention_outputs"][f"blocks.{layer}.attn"][
            "output"
        ]
        assert output == captured.modules[f"blocks.{layer}.attn"][0].value.tolist()
        assert weights == made.weights().tolist()
    assert document["selected_patterns"]["other"] == ["blocks.{layer}"]


def test_maps_alone_are_enough(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad(), visualizer.capture(model) as captured:
        model(TOKENS)
    document = save(captured, tmp_path)
    assert [layer.shape for layer in as_bertviz_reads_it(document)] == [(4, 6, 6)] * 3
    first = document["captured"]["attention_outputs"]["model.layers.0.self_attn"]
    assert set(first) == {"output"} and first["output"][0] is None
    none = save(captured, tmp_path, attention=False)
    assert none["captured"]["attention_outputs"] == {}


def test_a_mixer_that_attends_is_attention(tmp_path: Path) -> None:
    class Mixer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    model = nn.Sequential(Mixer())
    x = torch.randn(1, 2, 5, 8)
    with torch.no_grad(), visualizer.capture(model, modules=["0"]) as captured:
        model(x)
        with torch.no_grad():
            F.scaled_dot_product_attention(x, x, x)
    document = save(captured, tmp_path)
    assert document["selected_modules"]["attention"] == ["0"]
    assert as_bertviz_reads_it(document)[0].shape == (2, 5, 5)


def test_averaged_weights_stay_behind_the_heads(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.attn = nn.MultiheadAttention(16, 4, batch_first=True)
    model.forward = lambda x: model.attn(x, x, x)
    with torch.no_grad(), visualizer.capture(model, modules=["attn"]) as captured:
        model(numbers(batch=1))
    document = save(captured, tmp_path)
    output, weights, averaged = document["captured"]["attention_outputs"]["attn"]["output"]
    assert np.shape(weights) == (1, 4, 6, 6) and np.shape(averaged) == (1, 6, 6)
    assert np.allclose(np.mean(weights, 1), averaged, atol=1e-6)
    assert output == captured.modules["attn"][0].value[0].tolist()


def test_all_calls_are_there_and_the_last_is_the_output(tmp_path: Path) -> None:
    captured = captured_llama(forwards=3)
    document = save(captured, tmp_path)
    path = "model.layers.1.self_attn"
    found = document["captured"]["attention_outputs"][path]
    assert list(found) == ["output", "input", "calls"] and len(found["calls"]) == 3
    assert found["calls"][-1]["output"] == found["output"]
    for number, call in enumerate(found["calls"]):
        assert (call["call"], call["step"]) == (number, number)
        assert call["output"][0] == captured.modules[path][number].value[0].tolist()
        assert call["output"][1] == captured.attention[path][number].weights().tolist()


def test_generated_tokens_have_the_maps_of_their_calls(tmp_path: Path) -> None:
    model = llama()
    wanted = ["model.layers.*.self_attn"]
    with torch.no_grad(), visualizer.capture(model, modules=wanted) as captured:
        model.generate(TOKENS, max_new_tokens=3, do_sample=False)
    document = save(captured, tmp_path)
    for path, found in document["captured"]["attention_outputs"].items():
        assert [np.shape(call["output"][1]) for call in found["calls"]] == [
            (1, 4, 6, 6),
            (1, 4, 1, 7),
            (1, 4, 1, 8),
        ]
        assert found["output"] == found["calls"][-1]["output"] != found["calls"][0]["output"]
        for call, made in zip(found["calls"], captured.attention[path], strict=True):
            assert call["output"][1] == made.weights().tolist()


@pytest.mark.parametrize("keep", ["last", 2])
def test_kept_calls_have_their_own_maps(tmp_path: Path, keep: Any) -> None:
    model = llama()
    taken = visualizer.capture(model, modules=["model.layers.0.self_attn"], keep=(keep, "qk"))
    with torch.no_grad(), taken as captured:
        for count in range(2, 6):
            model(TOKENS[:, :count])
    found = save(captured, tmp_path)["captured"]["attention_outputs"]["model.layers.0.self_attn"]
    calls = found.get("calls", [found])
    kept = captured.modules["model.layers.0.self_attn"]
    assert len(calls) == len(kept) == (1 if keep == "last" else 2)
    for call, entry in zip(calls, kept, strict=True):
        assert np.shape(call["output"][1])[-1] == entry.call + 2 == np.shape(call["output"][0])[1]


def test_a_module_that_attends_twice_has_its_first_map(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = F.scaled_dot_product_attention(x, x, x)
            return F.scaled_dot_product_attention(2 * x, x, first)

    model = nn.Sequential()
    model.attn = Twice()
    with torch.no_grad(), visualizer.capture(model, modules=["attn"]) as captured:
        model(torch.randn(1, 2, 5, 8))
        model(torch.randn(1, 2, 6, 8))
    result = captured.save_json(tmp_path / "new.json")
    found = save(captured, tmp_path)["captured"]["attention_outputs"]["attn"]["calls"]
    assert len(captured.attention) == 4 and len(found) == 2
    for number, call in enumerate(found):
        assert call["output"][1] == captured.attention[2 * number].weights().tolist()
    assert len(result.left_out) == 2 and "further attention map" in result.left_out[0].why


def test_keyword_arguments_are_inputs(tmp_path: Path) -> None:
    captured = captured_llama()
    document = save(captured, tmp_path)
    path = "model.layers.0.self_attn"
    (given,) = document["captured"]["attention_outputs"][path]["input"]
    known = captured.inputs[path][0].value.kwargs
    assert given["hidden_states"] == known["hidden_states"].tolist()
    assert np.allclose(given["position_embeddings"][0], known["position_embeddings"][0])
    assert "past_key_values" not in given  # an object


def test_what_json_can_not_say_is_said_as_agreed(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")

    def value() -> Any:
        return {
            "floats": torch.tensor([nan, inf, -inf, 1e-45, 0.1]),
            "half": torch.tensor([nan, 65504.0, 0.1]).bfloat16(),
            "numbers": [nan, inf, -inf, 2**70, True, None],
            "complex": torch.tensor([1 + 2j]),
            "number": 1j,
            "truth": torch.tensor([True, False]),
            "whole": torch.tensor(7),
            "empty": torch.zeros(2, 0),
            "NaN": 'Infinity "NaN" \ud800 é\n',
            1: "one",
            "1": "also",
            None: "none",
            "date": np.array(["2020"], "M8[Y]"),
        }

    for each in fresh_and_loaded(odd_values(value), tmp_path):
        found = save(each, tmp_path)["captured"]["other_outputs"]["part"]["output"]
        small = float(np.float32(1e-45))
        assert found["floats"] == [None, inf, -inf, small, float(np.float32(0.1))]
        assert found["half"] == [None, 65536.0, torch.tensor(0.1).bfloat16().item()]
        assert found["numbers"] == [None, inf, -inf, 2**70, True, None]
        assert found["complex"] == {"real": [1.0], "imag": [2.0]}
        assert found["number"] == {"real": 0.0, "imag": 1.0}
        assert (
            found["truth"] == [True, False] and found["whole"] == 7 and found["empty"] == [[], []]
        )
        assert found["NaN"] == 'Infinity "NaN" \ud800 é\n' and found["date"] is None
        assert found["1"] == "also" and found["1 (int)"] == "one" and found["None"] == "none"
    text = (tmp_path / "out.json").read_text()
    assert "1e999" in text and "-1e999" in text and "Infinity," not in text


def test_large_arrays_are_written_in_parts(tmp_path: Path) -> None:
    arrays = [torch.randn(200_001), torch.randn(3, 70_000), torch.randn(2, 300, 301)]
    arrays.append(torch.arange(140_000) % 2 == 0)
    captured = odd_values(lambda: list(arrays))
    found = save(captured, tmp_path, force=True)["captured"]["other_outputs"]["part"]["output"]
    for array, made in zip(arrays, found, strict=True):
        assert made == array.tolist()


def test_maps_are_written_some_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visualizer.store.json_text._PART", 20)
    monkeypatch.setattr("visualizer.store.json_text._WHOLE_BYTES", 0)
    model = Tiny(2)
    with torch.no_grad(), visualizer.capture(model) as captured:
        model(numbers(tokens=7, batch=2))
    found = save(captured, tmp_path)["captured"]["attention_outputs"]
    for made in captured.attention:
        weights = found[made.module_path]["output"][1]
        assert np.shape(weights) == made.shape == (2, 4, 7, 7)
        assert np.allclose(weights, made.weights(), rtol=1e-5, atol=1e-7)


def test_locals_are_told_to_be_left_out(tmp_path: Path) -> None:
    model = Tiny(attention=SoftmaxAttention)
    taken = visualizer.capture(model, locals={SoftmaxAttention.forward: ["attn"]})
    with torch.no_grad(), taken as captured:
        model(numbers())
    result = captured.save_json(tmp_path / "out.json")
    assert [each.name for each in result.left_out] == ["locals.SoftmaxAttention.forward.attn"]


class Wide(nn.Module):
    """Returns more numbers than may be written, as one array or in a list."""

    def __init__(self, is_nested: bool) -> None:
        super().__init__()
        self.part = nn.Identity()
        self.is_nested = is_nested

    def forward(self, x: Tensor) -> Any:
        value = torch.zeros(12_600_000 if not self.is_nested else 300_000)
        return self.part([value + 0.123456789] if self.is_nested else value)


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("is_there", [False, True])
def test_what_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_nested: bool, is_there: bool
) -> None:
    model = Wide(is_nested)
    with torch.no_grad(), visualizer.capture(model, modules=["part"]) as captured:
        model(torch.zeros(1))
    if is_nested:
        monkeypatch.setattr(json_file, "MAX_JSON_BYTES", 5 * 10**6)
    else:  # at once: nothing is opened
        monkeypatch.setattr(json_file, "written_aside", None)
    path = tmp_path / "new" / "out.json"
    if is_there:
        path.parent.mkdir()
        path.write_text("before")
    with pytest.raises(ExportTooLargeError, match="force=True"):
        captured.save_json(path, overwrite=True)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path] * is_there
    assert path.parent.exists() == is_there and (not is_there or path.read_text() == "before")
    if is_nested:
        result = captured.save_json(path, overwrite=True, force=True)
        assert result.nbytes > 5 * 10**6
        found = read(path)["captured"]["other_outputs"]["part"]["output"][0]
        assert found == captured.modules["part"][0].value[0].tolist()


def test_the_limit_is_one_of_bytes_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = captured_llama()
    size = captured.save_json(tmp_path / "out.json").nbytes
    assert size == (tmp_path / "out.json").stat().st_size
    monkeypatch.setattr(json_file, "MAX_JSON_BYTES", size)
    captured.save_json(tmp_path / "fits.json")
    monkeypatch.setattr(json_file, "MAX_JSON_BYTES", size - 1)
    with pytest.raises(ExportTooLargeError, match="would have more"):
        captured.save_json(tmp_path / "not.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fits.json", "out.json"]
    monkeypatch.setattr(json_file, "MAX_JSON_BYTES", 1000)
    with pytest.raises(ExportTooLargeError, match="at least 0 MB"):
        captured.save_json(tmp_path / "not.json")


def test_the_whole_text_is_never_in_memory(tmp_path: Path) -> None:
    captured = odd_values(lambda: [torch.randn(1_000_000)])
    tracemalloc.start()
    result = captured.save_json(tmp_path / "out.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.nbytes > 18 * 10**6 and peak < result.nbytes / 2


def test_an_existing_file_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = captured_llama()
    path = tmp_path / "out.json"
    path.write_text("before")
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        captured.save_json(path)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreWriteError, match="No space left"):
        captured.save_json(path, overwrite=True)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(StoreExistsError, match="no file"):
        captured.save_json(tmp_path, overwrite=True)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "there" / "out.json")
    captured_llama().save_json(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink() and read(tmp_path / "there" / "out.json")


@pytest.mark.parametrize(
    "ids",
    [[5, 6], (5, 6), torch.tensor([5, 6]), torch.tensor([[5, 6]]), [torch.tensor([5, 6])]],
    ids=range(5),
)
def test_input_ids_are_lists_of_lists(tmp_path: Path, ids: Any) -> None:
    captured = odd_values(lambda: 1)
    assert save(captured, tmp_path, input_ids=ids)["input_ids"] == [[5, 6]]


def test_the_model_is_its_class_where_it_has_no_name(tmp_path: Path) -> None:
    captured = odd_values(lambda: 1)
    found = save(captured, tmp_path)
    assert found["model"] == "tests.store.exporting:Returning" and found["prompt"] is None
    with pytest.raises(TypeError, match="expected its name"):
        captured.save_json(tmp_path / "new.json", model=nn.Linear(1, 1))
    with pytest.raises(ShapeError, match="can't be read as numbers"):
        captured.save_json(tmp_path / "new.json", input_ids="text")


def test_hostile_names_are_keys(tmp_path: Path) -> None:
    model = Hostile()
    with torch.no_grad(), visualizer.capture(model, modules=list(Hostile.NAMES)) as captured:
        model(torch.randn(2, 4))
    document = save(captured, tmp_path)
    assert set(document["captured"]["other_outputs"]) == set(Hostile.NAMES)


def test_a_damaged_value_is_null(tmp_path: Path) -> None:
    _, loaded = fresh_and_loaded(captured_llama(), tmp_path)
    (shard,) = (tmp_path / "store" / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    result = loaded.save_json(tmp_path / "out.json")
    assert any("is damaged" in each.why for each in result.left_out)
    read(tmp_path / "out.json")


NAMES = {
    "model.layers.3.self_attn": ("attention", "model.layers.{layer}.self_attn"),
    "model.layers.3.self_attn.o_proj": ("attention", "model.layers.{layer}.self_attn.o_proj"),
    "model.layers.3.post_attention_layernorm": (
        "other",
        "model.layers.{layer}.post_attention_layernorm",
    ),
    "model.layers.3": ("other", "model.layers.{layer}"),
    "blocks.11": ("other", "blocks.{layer}"),
    "blocks.11.mlp.fc1": ("mlp", "blocks.{layer}.mlp.fc1"),
    "transformer.h.0.attn": ("attention", "transformer.h.{layer}.attn"),
    "transformer.h.0.ln_1": ("other", "transformer.h.{layer}.ln_1"),
    "encoder.layer.2.attention.self": ("attention", "encoder.layer.{layer}.attention.self"),
    "encoder.layer.2.intermediate.dense": ("mlp", "encoder.layer.{layer}.intermediate.dense"),
    "encoder.block.0.layer.1.DenseReluDense": (
        "mlp",
        "encoder.block.{layer}.layer.1.DenseReluDense",
    ),
    "encoder.block.0.layer.0.SelfAttention": (
        "attention",
        "encoder.block.{layer}.layer.0.SelfAttention",
    ),
    "mlp_attn": ("attention", "mlp_attn"),
    "lm_head": ("other", "lm_head"),
    "": ("other", ""),
}


@pytest.mark.parametrize("path", NAMES)
def test_categories_and_patterns(path: str) -> None:
    assert (category_of(path), pattern_of(path)) == NAMES[path]


def test_layers() -> None:
    assert layer_of("model.layers.3", ()) == (3, "layers")
    assert layer_of("layers.0.blocks.1.attn", ()) == (0, "blocks.1.attn")
    assert layer_of("layers.0.blocks.1.attn", ["layers.*.blocks.{layer}.*"]) == (1, "attn")
    assert layer_of("layer2.0.conv", ["layer{layer}.0.*"]) == (2, "layer2.0.conv")
    assert layer_of("norm", ["layer{layer}"]) is None
