"""The tree of `.pt` files."""

from __future__ import annotations

import builtins
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import visualizer
from tests.attention_models.test_timm import timm  # noqa: F401  (a fixture)
from tests.block.samples import SoftmaxAttention, Tiny, numbers
from tests.store.exporting import (
    Hostile,
    as_float,
    captured_llama,
    fresh_and_loaded,
    odd_values,
)
from visualizer.errors import OutOfRangeError, StoreExistsError, StoreWriteError


def read(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def files(root: Path) -> dict[str, Any]:
    """Return everything in a tree, by path."""
    return {
        path.relative_to(root).as_posix(): read(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix == ".pt"
    }


def names(root: Path) -> Any:
    return json.loads((root / "names.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_values_are_what_was_captured_in_their_type(tmp_path: Path, dtype: str) -> None:
    captured = captured_llama(dtype=getattr(torch, dtype))
    for number, each in enumerate(fresh_and_loaded(captured, tmp_path)):
        each.save_pt(tmp_path, f"run{number}")
        for layer in range(3):
            folder = tmp_path / f"run{number}" / f"layer_{layer}"
            made = read(folder / "mlp.pt")
            entry = captured.modules[f"model.layers.{layer}.mlp"][0]
            assert str(made.dtype) == f"torch.{dtype}" and made.device.type == "cpu"
            assert np.array_equal(as_float(made), entry.value) and not made.requires_grad
            weights = captured.attention[f"model.layers.{layer}.self_attn"][0].weights()
            assert np.array_equal(read(folder / "attn_weight.pt"), weights)
            output, nothing = read(folder / "self_attn.pt")
            expected = captured.modules[f"model.layers.{layer}.self_attn"][0].value[0]
            assert nothing is None and np.array_equal(output, expected)
            given = read(folder / "self_attn.input.pt")["kwargs"]["hidden_states"]
            known = captured.inputs[f"model.layers.{layer}.self_attn"][0].value.kwargs
            assert np.array_equal(given, known["hidden_states"])
        assert read(tmp_path / f"run{number}" / "model.norm.pt").shape == (1, 6, 32)


def test_a_loaded_capture_makes_the_same_tree(tmp_path: Path) -> None:
    fresh, loaded = fresh_and_loaded(captured_llama(forwards=2), tmp_path)
    one, two = fresh.save_pt(tmp_path, "fresh"), loaded.save_pt(tmp_path, "loaded")
    assert [str(each) for each in one.left_out] == [str(each) for each in two.left_out]
    pairs = list(zip(one.files, two.files, strict=True))
    assert len(pairs) == 2 * (3 * 5 + 2)
    for first, second in pairs:
        assert first.relative_to(one.path) == second.relative_to(two.path)
        assert first.read_bytes() == second.read_bytes()


FLOAT8 = [name for name in dir(torch) if name.startswith("float8")]


@pytest.mark.parametrize("name", FLOAT8)
def test_float8_is_float8_again(tmp_path: Path, name: str) -> None:
    value = torch.tensor([1.0, 2.0, 0.5, 4.0]).to(getattr(torch, name))
    for number, each in enumerate(fresh_and_loaded(odd_values(lambda: value), tmp_path)):
        each.save_pt(tmp_path, f"run{number}")
        made = read(tmp_path / f"run{number}" / "part.pt")
        assert made.dtype == value.dtype
        assert torch.equal(made.view(torch.uint8), value.view(torch.uint8))


def test_nan_and_infinity_stay_bfloat16(tmp_path: Path) -> None:
    value = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0]).bfloat16()
    odd_values(lambda: value).save_pt(tmp_path, "run")
    made = read(tmp_path / "run" / "part.pt")
    assert made.dtype == torch.bfloat16 and str(made) == str(value)


def test_storages_are_compact_and_nobody_elses(tmp_path: Path) -> None:
    whole = torch.randn(1000, 8, requires_grad=True)
    shared = torch.randn(4)
    captured = odd_values(lambda: (whole[10:12].t(), shared, shared))
    captured.save_pt(tmp_path, "run")
    slice_, one, two = read(tmp_path / "run" / "part.pt")
    assert torch.equal(slice_, whole[10:12].t()) and not slice_.requires_grad
    assert slice_.untyped_storage().nbytes() == 2 * 8 * 4 and slice_.is_contiguous()
    assert one.data_ptr() != two.data_ptr()
    assert (tmp_path / "run" / "part.pt").stat().st_size < 4000


class Twice(nn.Module):
    """A layer that calls its parts twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(layer(x))
        return x


@pytest.mark.parametrize("steps", [None, True, False])
def test_no_call_overwrites_another(tmp_path: Path, steps: bool | None) -> None:
    model = Twice()
    with torch.no_grad(), visualizer.capture(model, modules=["layers.*"]) as captured:
        model(torch.randn(1, 4))
        model(torch.randn(1, 4))
    result = captured.save_pt(tmp_path, "run", steps=steps)
    entries = captured.modules["layers.1"]
    found = files(tmp_path / "run")
    assert len(found) == 8 == result.values
    for number, entry in enumerate(entries):
        step, call = divmod(number, 2)
        file = f"step_{step}/layer_1/layers.call_{call}.pt"
        file = f"layer_1/layers.call_{number}.pt" if steps is False else file
        assert np.array_equal(found[file], entry.value)
        assert names(tmp_path / "run")[file]["call"] == entry.call


def test_step_folders_come_with_the_second_step(tmp_path: Path) -> None:
    model = Tiny()
    with torch.no_grad(), visualizer.capture(model) as captured:
        model(numbers())
    captured.save_pt(tmp_path, "auto")
    assert set(files(tmp_path / "auto")) == {f"layer_{n}/attn_weight.pt" for n in range(3)}
    captured.save_pt(tmp_path, "steps", steps=True)
    assert set(files(tmp_path / "steps")) == {f"step_0/layer_{n}/attn_weight.pt" for n in range(3)}


def test_locals_keep_their_names_beside_modules(tmp_path: Path) -> None:
    model = Tiny(attention=SoftmaxAttention)
    locals_ = {SoftmaxAttention.forward: ["attn", "q"]}
    taken = visualizer.capture(model, locals=locals_, modules=["blocks.*.attn", "blocks.*.mlp"])
    with torch.no_grad(), taken as captured:
        model(numbers())
    captured.save_pt(tmp_path, "run")
    found = files(tmp_path / "run")
    assert len(found) == 15
    for layer in range(3):
        entry = captured.locals["SoftmaxAttention.forward"]["attn"][layer]
        assert np.array_equal(found[f"layer_{layer}/attn.pt"], entry.value)
        entry = captured.modules[f"blocks.{layer}.attn"][0]
        assert np.array_equal(found[f"layer_{layer}/blocks.{layer}.attn.pt"], entry.value)
        entry = captured.modules[f"blocks.{layer}.mlp"][0]
        assert np.array_equal(found[f"layer_{layer}/mlp.pt"], entry.value)
    about = names(tmp_path / "run")
    assert set(about) == {f"layer_{n}/blocks.{n}.attn.pt" for n in range(3)}
    assert about["layer_2/blocks.2.attn.pt"]["module_path"] == "blocks.2.attn"


class Sides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Tiny(2), Tiny(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) + self.decoder(x)


def test_two_modules_of_one_layer_have_their_whole_paths(tmp_path: Path) -> None:
    model = Sides()
    with torch.no_grad(), visualizer.capture(model, modules=["**.mlp"]) as captured:
        model(numbers())
    captured.save_pt(tmp_path, "run")
    found = files(tmp_path / "run")
    assert len(found) == 10
    for path, (entry,) in captured.modules.items():
        assert np.array_equal(found[f"layer_{path.split('.')[2]}/{path}.pt"], entry.value)
    for made in captured.attention:
        file = f"layer_{made.module_path.split('.')[2]}/{made.module_path}.attn_weight.pt"
        assert np.array_equal(found[file], made.weights())


def test_layers_of_two_stacks_are_told_apart(tmp_path: Path) -> None:
    model = Sides()
    wanted = ["encoder.blocks.*.mlp", "decoder.blocks.*.attn", "decoder.head"]
    taken = visualizer.capture(model, modules=wanted, attention=False)
    with torch.no_grad(), taken as captured:
        model(numbers())
    captured.save_pt(tmp_path, "run")
    assert set(files(tmp_path / "run")) == {
        *(f"layer_{n}/encoder.blocks.{n}.mlp.pt" for n in range(2)),
        *(f"layer_{n}/decoder.blocks.{n}.attn.pt" for n in range(3)),
        "decoder.head.pt",
    }


def test_the_model_itself_and_what_is_outside(tmp_path: Path) -> None:
    model = Tiny(1)
    with torch.no_grad(), visualizer.capture(model, modules=[""]) as captured:
        model(numbers())
    captured.save_pt(tmp_path, "run")
    found = files(tmp_path / "run")
    assert set(found) == {"model.pt", "layer_0/attn_weight.pt"}
    captured.save_npz(tmp_path / "out.npz")
    assert set(np.load(tmp_path / "out.npz")) == {"modules", "attention.blocks.0.attn"}
    with torch.no_grad(), visualizer.capture() as captured:
        nn.functional.scaled_dot_product_attention(*[torch.randn(1, 2, 3, 4)] * 3)
    captured.save_pt(tmp_path, "none")
    assert set(files(tmp_path / "none")) == {"attn_weight.pt"}
    captured.save_npz(tmp_path / "none.npz")
    assert set(np.load(tmp_path / "none.npz")) == {"attention.outside_of_modules"}


def test_a_pattern_says_what_is_a_layer(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.layer1, model.layer2 = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    model.append(nn.Identity())
    taken = visualizer.capture(model, modules=["layer{layer}.0"])
    with torch.no_grad(), taken as captured:
        model(torch.randn(1, 4))
    for number, each in enumerate(fresh_and_loaded(captured, tmp_path)):
        each.save_pt(tmp_path, f"run{number}")
        assert {name.split("/")[0] for name in files(tmp_path / f"run{number}")} == {
            "layer_1",
            "layer_2",
        }


def test_timm(tmp_path: Path, timm: Any) -> None:  # noqa: F811
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=3)
    taken = visualizer.capture(model.eval(), modules=["blocks.*.attn", "norm"])
    with torch.no_grad(), taken as captured:
        model(torch.randn(1, 3, 64, 64))
    for number, each in enumerate(fresh_and_loaded(captured, tmp_path)):
        each.save_pt(tmp_path, f"run{number}")
        found = files(tmp_path / f"run{number}")
        assert len(found) == 7 and found["norm.pt"].shape == (1, 17, 192)
        for layer, (made,) in enumerate(captured.attention.layers):
            assert np.array_equal(found[f"layer_{layer}/attn_weight.pt"], made.weights())
            entry = captured.modules[f"blocks.{layer}.attn"][0]
            assert np.array_equal(found[f"layer_{layer}/attn.pt"], entry.value)


def test_attention_is_left_out_where_it_is_not_wanted_or_too_large(tmp_path: Path) -> None:
    captured = captured_llama()
    without = captured.save_pt(tmp_path, "without", attention=False)
    assert not [path for path in without.files if "attn_weight" in path.name]
    small = captured.save_pt(tmp_path, "small", max_map_bytes=100)
    assert not [path for path in small.files if "attn_weight" in path.name]
    told = [each for each in small.left_out if each.name.startswith("attention.")]
    assert len(told) == 3 and "would take" in told[0].why
    assert "attention.model.layers.0.self_attn" in repr(small)


@dataclasses.dataclass
class Point:
    x: Any
    y: Any


def test_containers_become_plain_and_the_rest_is_told(tmp_path: Path) -> None:
    array = torch.arange(3)

    def value() -> Any:
        inner = {"a": array, 1: "text", None: 2.5, "object": object(), (1, 2): 3}
        return [Point(array, (1, None, True)), inner, torch.max(torch.eye(2), 0), 1j, b"", b"ab"]

    for number, each in enumerate(fresh_and_loaded(odd_values(value), tmp_path)):
        result = each.save_pt(tmp_path, f"run{number}")
        point, inner, top, imaginary, none, two = read(tmp_path / f"run{number}" / "part.pt")
        assert type(point) is dict and torch.equal(point["x"], array)
        assert point["y"] == (1, None, True) and set(inner) == {"a", 1, None}
        assert type(top) is tuple and torch.equal(top[0], torch.ones(2)) and imaginary == 1j
        assert none.tolist() == [] and bytes(two.tolist()) == b"ab"
        assert [str(told) for told in result.left_out] == [
            "modules.part[1]['object']: an object of builtins:object",
            "modules.part[1]: an item whose key is an object of builtins:tuple",
        ]


def around_itself() -> Any:
    found: list[Any] = [1]
    found.append(found)
    return found


ODD: dict[str, tuple[Any, Any]] = {
    "circle": (around_itself, [1, None]),
    "object": (object, None),
    "empty": (lambda: torch.zeros(0, 3), torch.zeros(0, 3)),
    "scalar": (lambda: torch.tensor(3), torch.tensor(3)),
    "string": (lambda: "a\0b\ud800", "a\0b\ud800"),
    "large": (lambda: [2**64, 2**5000], [2**64, None]),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        [torch.ones(2), torch.ones(3)],
    ),
    "big endian": (lambda: np.arange(3, dtype=">i4"), torch.arange(3, dtype=torch.int32)),
    "words": (lambda: np.array(["a", "bc"]), ["a", "bc"]),
    "objects": (lambda: np.array([1, "x", None], object), [1, "x", None]),
    "dates": (lambda: [np.array(["2020-01-01"], "M8[D]"), 1], [None, 1]),
    "reversed": (lambda: np.arange(4)[::-1], torch.tensor([3, 2, 1, 0])),
    "sparse": (lambda: torch.eye(2).to_sparse(), torch.eye(2)),
    "conjugate": (lambda: torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j])),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", ODD)
def test_odd_values(tmp_path: Path, case: str) -> None:
    make, expected = ODD[case]
    for number, each in enumerate(fresh_and_loaded(odd_values(make), tmp_path)):
        result = each.save_pt(tmp_path, f"run{number}")
        if expected is None:
            assert result.files == () and len(result.left_out) == 1
            continue
        found = read(tmp_path / f"run{number}" / "part.pt")
        assert type(found) is type(expected)
        pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected)
        for one, other in pairs:
            same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
            assert same and (not isinstance(one, Tensor) or one.dtype == other.dtype)


def test_names_never_become_paths(tmp_path: Path) -> None:
    model = Hostile()
    with torch.no_grad(), visualizer.capture(model, modules=["**", *Hostile.NAMES]) as captured:
        model(torch.randn(2, 4))
    root = tmp_path / "base" / "run"
    for number, each in enumerate(fresh_and_loaded(captured, tmp_path)):
        result = each.save_pt(tmp_path / "base", "run", overwrite=number == 1)
        inside = [path for path in (tmp_path / "base").rglob("*") if path.is_file()]
        assert set(inside) == set(result.files) and {path.parent for path in inside} == {root}
        lower = {path.name.lower() for path in inside}
        assert len(lower) == len(inside) and max(map(len, lower)) < 160
        assert all(name.isascii() and name.partition(".")[0] != "con" for name in lower)
    about = names(root)
    found = {facts["module_path"]: name for name, facts in about.items()}
    unchanged = {"A": "A.pt", "-": "-.pt"}
    assert set(Hostile.NAMES) == {*found, *unchanged} - {""}
    for path, entries in captured.modules.items():
        if path:
            file = found.get(path) or unchanged[path]
            assert np.array_equal(read(root / file), entries[0].value)


BAD = ["", ".", "..", "a/b", "/a", "a\\b", "a\0", "C:x", "nul", "x" * 300, "a.", "~/x", "a\n"]


@pytest.mark.parametrize("identifier", BAD, ids=range(len(BAD)))
def test_an_identifier_is_one_folder(tmp_path: Path, identifier: str) -> None:
    captured = captured_llama()
    with pytest.raises(OutOfRangeError, match="identifier is"):
        captured.save_pt(tmp_path / "base", identifier)
    with pytest.raises(TypeError, match="identifier is 3"):
        captured.save_pt(tmp_path / "base", 3)
    assert not (tmp_path / "base").exists()


def test_home_is_expanded_and_defaults_are_those_of_vistvis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    captured = captured_llama()
    captured.save_pt("~/there", "run")
    captured.save_pt()
    assert (tmp_path / "there" / "run" / "layer_0" / "attn_weight.pt").is_file()
    assert (tmp_path / "vistvis_runs" / "global" / "layer_0" / "attn_weight.pt").is_file()


def test_what_is_there_stays_unless_told(tmp_path: Path) -> None:
    captured = captured_llama()
    file = tmp_path / "run" / "layer_2" / "mlp.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        captured.save_pt(tmp_path, "run")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.read_bytes() == b"mine"
    captured.save_pt(tmp_path, "run", overwrite=True)
    assert read(file).shape == (1, 6, 32)
    os.remove(file)
    file.mkdir()
    with pytest.raises(StoreExistsError, match="no file"):
        captured.save_pt(tmp_path, "run", overwrite=True)


def test_names_of_two_exports_are_in_one_file(tmp_path: Path) -> None:
    for name in ("é", "ü"):
        model = nn.Sequential()
        model._modules[name] = nn.Linear(4, 4)
        with torch.no_grad(), visualizer.capture(model, modules=[name]) as captured:
            model(torch.randn(1, 4))
        captured.save_pt(tmp_path, "run")
    assert {facts["name"] for facts in names(tmp_path / "run").values()} == {"é", "ü"}
    (tmp_path / "run" / "names.json").write_text("mine")
    with pytest.raises(StoreExistsError, match=r"names\.json"):
        captured.save_pt(tmp_path, "run", steps=True)
    assert (tmp_path / "run" / "names.json").read_text() == "mine"


class FullDisk(io.FileIO):
    def write(self, data: Any) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("kind", ["write", "replace"])
def test_no_half_file_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    captured = captured_llama()
    captured.save_pt(tmp_path, "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.pt")}

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if kind == "replace":
            patch.setattr(os, "replace", refuse)
        else:
            patch.setattr(Path, "open", lambda path, mode="r": FullDisk(path, "x"))
        with pytest.raises(StoreWriteError, match="No space|can't be written"):
            captured.save_pt(tmp_path, "run", overwrite=True)
        with pytest.raises(StoreWriteError):
            captured.save_pt(tmp_path, "new")
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before and not (tmp_path / "new").exists()


def test_an_interrupt_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = captured_llama()

    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        captured.save_pt(tmp_path, "run")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_value_is_left_out(tmp_path: Path) -> None:
    fresh, loaded = fresh_and_loaded(captured_llama(), tmp_path)
    (shard,) = (tmp_path / "store" / "shards").iterdir()
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    result = loaded.save_pt(tmp_path, "run")
    whole = fresh.save_pt(tmp_path, "whole")
    assert 0 < result.values < whole.values
    assert any("is damaged" in each.why for each in result.left_out)


def test_what_is_returned_says_it_in_words(tmp_path: Path) -> None:
    text = repr(captured_llama().save_pt(tmp_path, "run"))
    assert text.startswith("<17 values in 17 files, ") and f"to {tmp_path / 'run'}>" in text
    assert "left out: inputs.model.layers.0.self_attn.kwargs['past_key_values'] and 2 more" in text
    assert builtins.len(text.splitlines()) == 2
