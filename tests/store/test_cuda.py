"""Saving values that are on a GPU: pinned memory, a stream of its own, and the model goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import visualizer
from visualizer.store import Row, Store, StoreWriter, units
from visualizer.store.device import PinnedPool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


class Attend(nn.Module):
    def forward(self, x: Any) -> Any:
        return functional.scaled_dot_product_attention(x, x.flip(-2), x, is_causal=True)


def some_x(size: int = 64) -> Any:
    return torch.randn(2, 4, size, 32, device="cuda")


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_capture_from_a_gpu_comes_back(tmp_path: Path, background: bool, dtype: Any) -> None:
    model = nn.Sequential(Attend(), Attend())
    with torch.no_grad(), visualizer.capture(model, modules="*", keep="qk") as captured:
        model(some_x().to(dtype))
    captured.save(tmp_path / "run", background=background).wait()
    loaded = visualizer.load(tmp_path / "run")
    for path in ("0", "1"):
        assert np.array_equal(loaded.modules[path][0].value, captured.modules[path][0].value)
    for got, expected in zip(loaded.attention, captured.attention, strict=True):
        assert got.confirmed
        call, held = got.record.read(), expected.record.read()
        assert torch.equal(call.query, held.query.cpu())
        assert torch.equal(call.key, held.key.cpu())
        assert np.allclose(got.weights(), expected.weights(), atol=1e-6)
    assert visualizer.verify(tmp_path / "run").ok


def test_a_spill_from_a_gpu(tmp_path: Path) -> None:
    model, inputs = nn.Sequential(Attend(), Attend()), [some_x() for _ in range(20)]
    with torch.no_grad():
        outputs = [model(x) for x in inputs]
        with visualizer.capture(model, modules="1", out=tmp_path / "run", max_bytes=2**21):
            for x, plain in zip(inputs, outputs, strict=True):
                assert torch.equal(model(x), plain)
    loaded = visualizer.load(tmp_path / "run")
    for entry, plain in zip(loaded.modules["1"], outputs, strict=True):
        assert np.array_equal(entry.value, plain.cpu().numpy())
    assert len(loaded.attention) == 40
    assert all(made.confirmed for made in loaded.attention)


def test_the_model_does_not_wait_for_the_copy(tmp_path: Path) -> None:
    if not hasattr(torch.cuda, "_sleep"):
        pytest.skip("this torch can't keep a GPU busy for a while")
    x = some_x()
    writer = StoreWriter(tmp_path / "run", is_in_background=True)
    torch.cuda._sleep(2**31)  # about a second
    doubled = x * 2  # is computed behind that
    writer.add(Row(kind="output", value=doubled))
    end = torch.cuda.Event()
    end.record()
    assert not end.query(), "adding the value has waited for the GPU"
    writer.close()
    store = Store(tmp_path / "run")
    assert torch.equal(store.read(store.rows[0]), (x * 2).cpu())


def test_memory_that_is_used_again_is_not_what_is_written(tmp_path: Path) -> None:
    expected = []
    with StoreWriter(tmp_path / "run", is_in_background=True) as writer:
        for number in range(50):
            value = torch.full((2**20,), float(number), device="cuda")
            writer.add(Row(kind="output", value=value))
            del value  # the allocator may give its memory to the next one
            expected.append(float(number))
    store = Store(tmp_path / "run")
    values = [store.read(row) for row in store.rows]
    assert [float(value[0]) for value in values] == expected
    assert all(bool((value == value[0]).all()) for value in values)


def test_a_tensor_that_is_changed_before_it_is_copied_is_left_out(
    tmp_path: Path, monkeypatch: Any
) -> None:
    value, other = some_x(), some_x()
    writer = StoreWriter(tmp_path / "run", is_in_background=True)
    writer.add(Row(kind="output", module_path="changed", value=value))
    writer.add(Row(kind="output", module_path="other", value=other))
    value += 1
    with pytest.raises(visualizer.errors.OverwrittenError, match="changed"):
        writer.close()
    store = Store(tmp_path / "run")
    assert [row.module_path for row in store.rows] == ["other"]
    assert torch.equal(store.read(store.rows[0]), other.cpu())


def test_beyond_its_bound_the_pool_copies_into_ordinary_memory() -> None:
    pool = PinnedPool(max_bytes=2**20)
    x = torch.randn(2**17, device="cuda")  # half of it
    pieces = [pool.copy(x) for _ in range(5)]
    assert sum(piece.wait is not None for piece in pieces) == 2
    for piece in pieces:
        assert piece.wait is None or piece.wait()
    assert len({piece.hash() for piece in pieces}) == 1
    for piece in pieces:
        if piece.release is not None:
            piece.release()
    again = pool.copy(x)
    assert again.wait is not None
    assert again.address in {piece.address for piece in pieces}


def test_pinned_memory_is_given_back_after_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    pool = PinnedPool(max_bytes=2**20)
    monkeypatch.setattr("visualizer.store.device.pool", pool)

    def fail(*args: Any) -> Any:
        raise OSError("no space")

    monkeypatch.setattr(units, "write_shard", fail)
    writer = StoreWriter(tmp_path / "run")
    writer.add(Row(kind="output", value=torch.randn(2**17, device="cuda")))
    with pytest.raises(visualizer.errors.StoreWriteError, match="no space"):
        writer.close()
    assert pool._used == 0
