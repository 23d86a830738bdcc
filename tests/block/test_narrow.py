"""Values of bfloat16 and float8 stay so until they are read, and are float32 then."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import visualizer

NARROW = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]


def some_values(dtype: str) -> Any:
    x = torch.randn(3, 4).to(getattr(torch, dtype))
    x[0, 0] = float("nan")
    return x


class Pair(NamedTuple):
    first: Any
    second: Any


class Give(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Any:
        return self.value


def capture_value(value: Any) -> Any:
    with torch.no_grad(), visualizer.capture(Give(value), modules="") as captured:
        captured._record.model()
    return captured.modules[""][0]


@pytest.mark.parametrize("dtype", NARROW)
def test_they_are_float32_when_they_are_read(dtype: str) -> None:
    x = some_values(dtype)
    entry = capture_value(x)
    assert entry.dtype == dtype
    assert entry.shape == (3, 4)
    assert entry.nbytes == x.nbytes
    assert repr(entry) == f"<output of the model, call 0: {dtype}[3, 4]>"
    expected = x.float().numpy()
    assert entry.value.dtype == np.float32
    assert np.array_equal(entry.value.view(np.uint32), expected.view(np.uint32))
    assert entry.value is entry.value
    entry.value[1, 1] = 7
    assert entry.value[1, 1] == 7


def test_the_program_does_not_reach_them() -> None:
    x = some_values("bfloat16")
    expected = x.float().numpy().copy()
    entry = capture_value(x)
    x.zero_()
    assert np.array_equal(entry.value, expected, equal_nan=True)


def test_parts_of_a_structure_are_widened_too_and_what_is_shared_stays_shared() -> None:
    x, wide = some_values("bfloat16"), torch.randn(2)
    kept = object()
    value = {"pair": Pair(x, [x, wide]), "list": [x, 3, None, "text", kept], "key": (wide,)}
    entry = capture_value(value)
    assert entry.nbytes == x.nbytes + wide.nbytes  # each once
    found = entry.value
    expected = x.float().numpy()
    assert type(found["pair"]) is Pair
    for part in (found["pair"].first, found["pair"].second[0], found["list"][0]):
        assert np.array_equal(part, expected, equal_nan=True)
    assert found["pair"].first is found["list"][0]
    assert np.array_equal(found["pair"].second[1], wide.numpy())
    assert found["list"][1:4] == [3, None, "text"]
    assert found["list"][4].value is kept
    assert np.array_equal(found["key"][0], wide.numpy())
    assert entry.value is found


def test_a_view_holds_no_more_than_its_own() -> None:
    x = torch.randn(100, 100).to(torch.bfloat16)
    entry = capture_value(x[:2, ::2].t())
    assert entry.nbytes == 2 * 50 * 2
    assert np.array_equal(entry.value, x[:2, ::2].t().float().numpy())


def test_a_turned_one_is_saved_as_it_is(tmp_path: Any) -> None:
    x = torch.randn(4, 6).to(torch.bfloat16)
    with visualizer.capture(Give(x.t()), modules="") as captured:
        captured._record.model()
    captured.save(tmp_path / "run")
    (entry,) = visualizer.load(tmp_path / "run").modules[""]
    assert np.array_equal(entry.value, x.t().float().numpy())


def test_what_has_a_graph_is_detached() -> None:
    layer = nn.Linear(3, 3).to(torch.bfloat16)
    with visualizer.capture(layer, modules="") as captured:
        output = layer(torch.randn(2, 3).to(torch.bfloat16))
    assert output.requires_grad
    assert np.array_equal(captured.modules[""][0].value, output.detach().float().numpy())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_under_modes_of_torch(mode: Any) -> None:
    layer = nn.Linear(3, 3).to(torch.bfloat16)
    with mode(), visualizer.capture(layer, modules="") as captured:
        output = layer(torch.randn(2, 3).to(torch.bfloat16))
    assert np.array_equal(captured.modules[""][0].value, output.float().numpy())


def test_a_saved_one_takes_two_bytes_a_value(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).to(torch.bfloat16)
    x = torch.randn(32, 64).to(torch.bfloat16)
    with torch.no_grad(), visualizer.capture(model, modules="*", inputs=True) as captured:
        model(x)
    captured.save(tmp_path / "unread")
    entries = [entries[0] for entries in captured.modules.values()]
    values = [entry.value for entry in entries]
    captured.save(tmp_path / "read")
    for name in ("unread", "read"):
        loaded = visualizer.load(tmp_path / name)
        assert loaded.nbytes == 3 * x.nbytes  # the second's input is the first's output
        for (got,), expected in zip(loaded.modules.values(), values, strict=True):
            assert got.value.dtype == np.float32
            assert np.array_equal(got.value, expected)
            assert got.dtype == "bfloat16"
        assert np.array_equal(loaded.inputs["0"][0].value.args[0], x.float().numpy())
