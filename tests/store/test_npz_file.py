"""The `.npz` file."""

from __future__ import annotations

import json
import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import visualizer
from tests.attention_models.test_timm import timm  # noqa: F401  (a fixture)
from tests.block.samples import SoftmaxAttention, Tiny, numbers
from tests.store.exporting import Hostile, captured_llama, fresh_and_loaded, odd_values
from visualizer.errors import StoreExistsError, StoreWriteError


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_are_what_was_captured(tmp_path: Path, dtype: str) -> None:
    captured = captured_llama(dtype=getattr(torch, dtype))
    found = {}
    for number, each in enumerate(fresh_and_loaded(captured, tmp_path)):
        result = each.save_npz(tmp_path / f"{number}.npz")
        found = read(tmp_path / f"{number}.npz")
        assert result.values == len(found) and "names.json" not in found
        for path, (entry,) in captured.modules.items():
            value = entry.value[0] if "attn" in path else entry.value
            made = found[f"modules.{path}.0" if "attn" in path else f"modules.{path}"]
            assert np.array_equal(made, value) and made.dtype == value.dtype
        for made in captured.attention:
            assert np.array_equal(found[f"attention.{made.module_path}"], made.weights())
        (entry,) = captured.inputs["model.layers.0.self_attn"]
        given = found["inputs.model.layers.0.self_attn.kwargs.hidden_states"]
        assert np.array_equal(given, entry.value.kwargs["hidden_states"])
        told = {str(each) for each in result.left_out}
        assert "modules.model.layers.0.self_attn.1: it is None" in told
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()


def test_several_calls_are_numbered_as_they_are_read(tmp_path: Path) -> None:
    model = Tiny(attention=SoftmaxAttention)
    wanted = {SoftmaxAttention.forward: ["attn"]}
    with torch.no_grad(), visualizer.capture(model, locals=wanted, modules="head") as captured:
        model(numbers())
        model(numbers())
    captured.save_npz(tmp_path / "out.npz")
    found = read(tmp_path / "out.npz")
    for number, entry in enumerate(captured.locals["SoftmaxAttention.forward"]["attn"]):
        key = f"locals.SoftmaxAttention.forward.attn.call_{number}"
        assert np.array_equal(found[key], entry.value)
    for number in range(2):
        entry = captured.modules["head"][number]
        assert np.array_equal(found[f"modules.head.call_{number}"], entry.value)
        made = captured.attention["blocks.1.attn"][number]
        assert np.array_equal(found[f"attention.blocks.1.attn.call_{number}"], made.weights())
    assert len(found) == 6 + 2 + 6


def test_timm(tmp_path: Path, timm: Any) -> None:  # noqa: F811
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=2)
    with torch.no_grad(), visualizer.capture(model.eval(), modules=["blocks.*.mlp"]) as captured:
        model(torch.randn(1, 3, 64, 64))
    captured.save_npz(tmp_path / "out.npz")
    found = read(tmp_path / "out.npz")
    assert np.array_equal(found["modules.blocks.1.mlp"], captured.modules["blocks.1.mlp"][0].value)
    assert found["attention.blocks.0.attn"].shape == (1, 3, 17, 17)


def test_leaves(tmp_path: Path) -> None:
    def value() -> Any:
        return {
            "number": 3,
            "float": 0.1,
            "complex": 1j,
            "truth": True,
            "text": "é",
            "cut": "a\0",
            "none": None,
            "large": 2**70,
            "object": object(),
            "pair": (torch.ones(2), [np.array(["a"]), np.array([1, None], object)]),
            "date": np.array(["2020-01-01"], "M8[D]"),
            "table": np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
            "bytes": b"\0a\0",
            "order": np.asfortranarray(np.arange(6).reshape(2, 3)),
            "scalar": torch.tensor(2.5),
        }

    for number, each in enumerate(fresh_and_loaded(odd_values(value), tmp_path)):
        result = each.save_npz(tmp_path / f"{number}.npz")
        found = {
            key.removeprefix("modules.part."): array
            for key, array in read(tmp_path / f"{number}.npz").items()
        }
        assert found["number"] == 3 and found["float"] == 0.1 and found["complex"] == 1j
        assert found["truth"].dtype == bool and found["text"] == "é"
        assert found["pair.0"].tolist() == [1, 1] and found["pair.1.0"].tolist() == ["a"]
        assert found["pair.1.1.0"] == 1 and found["scalar"] == 2.5
        assert found["date"].dtype == "M8[D]" and found["table"]["b"].tolist() == [2.0]
        assert bytes(found["bytes"]) == b"\0a\0"
        assert found["order"].tolist() == [[0, 1, 2], [3, 4, 5]]
        told = {each.name.removeprefix("modules.part") for each in result.left_out}
        assert told == {".cut", ".none", ".large", "['object']", ".pair.1.1.1"}


def test_keys_never_become_paths(tmp_path: Path) -> None:
    model = Hostile()
    with torch.no_grad(), visualizer.capture(model, modules=list(Hostile.NAMES)) as captured:
        model(torch.randn(2, 4))
    captured.save_npz(tmp_path / "out.npz")
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        members = archive.namelist()
        archive.extractall(tmp_path / "unpacked")
    assert len({name.lower() for name in members}) == len(members) == len(Hostile.NAMES) + 1
    assert not [name for name in members if set(name) & set("/\\\0:") or name.startswith(".")]
    unpacked = [path for path in tmp_path.rglob("*") if path.suffix == ".npy"]
    assert {path.parent for path in unpacked} == {tmp_path / "unpacked"}
    found = read(tmp_path / "out.npz")
    changed = json.loads(str(found["names.json"]))
    for path in Hostile.NAMES:
        key = {name: key for key, name in changed.items()}.get(f"modules.{path}")
        made = found[key or f"modules.{path}"]
        assert np.array_equal(made, captured.modules[path][0].value)


def test_keys_of_dicts_never_become_paths(tmp_path: Path) -> None:
    keys = ["../x", "a.0", "names.json", "A", "x" * 300, "\ud800", 1, "1", None]
    captured = odd_values(lambda: {**{key: n for n, key in enumerate(keys)}, "a": [-1]})
    captured.save_npz(tmp_path / "out.npz")
    found = read(tmp_path / "out.npz")
    changed = json.loads(str(found.pop("names.json")))
    assert sorted(int(array) for array in found.values()) == list(range(-1, len(keys)))
    assert not [key for key in found if set(key) & set("/\\") or len(key) > 160]
    assert found["modules.part.names.json"] == 2
    assert sorted(changed.values()) == sorted(
        [f"modules.part.{name}" for name in ("../x", "a.0", "x" * 300, "\ud800", "1")]
    )


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_one_array_at_a_time_is_in_memory(tmp_path: Path) -> None:
    with torch.no_grad(), visualizer.capture(model := Large(), modules=["layers.*"]) as captured:
        model(torch.randn(500_000))
    captured.save(tmp_path / "store")
    loaded = visualizer.load(tmp_path / "store")
    tracemalloc.start()
    loaded.save_npz(tmp_path / "out.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read(tmp_path / "out.npz")) == 8 and peak < 3 * 2_000_000


def test_attention_is_left_out_where_it_is_not_wanted_or_too_large(tmp_path: Path) -> None:
    captured = captured_llama()
    captured.save_npz(tmp_path / "1.npz", attention=False)
    result = captured.save_npz(tmp_path / "2.npz", max_map_bytes=100)
    for name in ("1.npz", "2.npz"):
        assert not [key for key in read(tmp_path / name) if key.startswith("attention")]
    assert sum(each.name.startswith("attention.") for each in result.left_out) == 3


def test_an_existing_file_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = captured_llama()
    path = tmp_path / "out.npz"
    path.write_text("before")
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        captured.save_npz(path)
    written: list[Any] = []
    write_array = np.lib.format.write_array

    def until_full(*args: Any, **kwargs: Any) -> None:
        written.append(args)
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        write_array(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array", until_full)
        with pytest.raises(StoreWriteError, match="No space left"):
            captured.save_npz(path, overwrite=True)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    captured.save_npz(path, overwrite=True)
    assert len(read(path)) > 10


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    captured_llama().save_npz(tmp_path / "out.npz")
    (tmp_path / "other").touch()
    assert (tmp_path / "out.npz").stat().st_mode == (tmp_path / "other").stat().st_mode
