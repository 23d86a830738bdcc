"""`capture(…, out=…)`: values go to the disk while the block runs."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import visualizer
from visualizer.errors import (
    OutOfRangeError,
    StoreExistsError,
    StoreWriteError,
    UnknownModuleError,
)
from visualizer.store import Store, units


class Attention(nn.Module):
    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.qkv = nn.Linear(size, 3 * size)

    def forward(self, x: Any) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).movedim(-3, 0).transpose(2, 3)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, layers: int = 3, size: int = 32) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Attention(size) for _ in range(layers))

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = x + block(x)
        return x


ASKED: dict[str, Any] = {
    "modules": ["blocks.{layer}"],
    "inputs": True,
    "locals": {Attention.forward: ["mixed"]},
}


def run(model: nn.Module, inputs: list[Any], **options: Any) -> Any:
    with torch.no_grad(), visualizer.capture(model, **ASKED, **options) as captured:
        captured.annotate(tokens=["a", "b"], grid=2)
        for x in inputs:
            model(x)
    return captured


def check_alike(captured: Any, expected: Any) -> None:
    assert list(captured.modules) == list(expected.modules)
    for view in ("modules", "inputs"):
        for path, entries in getattr(expected, view).items():
            for got, wanted in zip(getattr(captured, view)[path], entries, strict=True):
                check_entry(got, wanted)
    mixed = captured.locals["Attention.forward"]["mixed"]
    for got, wanted in zip(mixed, expected.locals["Attention.forward"]["mixed"], strict=True):
        check_entry(got, wanted)
    for got, wanted in zip(captured.attention, expected.attention, strict=True):
        assert np.array_equal(got.weights(), wanted.weights())
        for name in ("shape", "module_path", "layer", "call", "step", "source", "confirmed"):
            assert getattr(got, name) == getattr(wanted, name)
    assert captured.attention.paths == expected.attention.paths


def check_entry(got: Any, wanted: Any) -> None:
    assert repr(got) == repr(wanted)
    assert (got.layer, got.step, got.call) == (wanted.layer, wanted.step, wanted.call)
    if isinstance(wanted.value, np.ndarray):
        assert np.array_equal(got.value, wanted.value)
    else:
        assert np.array_equal(got.value.args[0], wanted.value.args[0])


def some_inputs(count: int = 3) -> list[Any]:
    return [torch.randn(2, 5, 32) for _ in range(count)]


@pytest.mark.parametrize("keep", ["auto", "weights", "rows", 2])
def test_what_is_spilled_is_what_would_have_been_kept(tmp_path: Path, keep: Any) -> None:
    model, inputs = Model(), some_inputs()
    expected = run(model, inputs, keep=keep)
    captured = run(model, inputs, keep=keep, out=tmp_path / "run")
    check_alike(captured, expected)
    loaded = visualizer.load(tmp_path / "run")
    check_alike(loaded, expected)
    assert loaded.annotations.tokens == ["a", "b"]
    assert loaded.annotations.grid == (2, 2)
    assert loaded.explain() == captured.explain() == ""
    assert visualizer.verify(tmp_path / "run").ok


def test_the_output_is_the_same_and_everything_is_put_back(tmp_path: Path) -> None:
    model, x = Model(), torch.randn(2, 5, 32)
    forward, code = Model.__call__, Attention.forward.__code__
    plain = model(x)
    with visualizer.capture(model, **ASKED, out=tmp_path / "run"):
        assert torch.equal(model(x), plain)
    assert Model.__call__ is forward
    assert Attention.forward.__code__ is code


def test_values_can_be_read_inside_the_block(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("visualizer.store.writer.UNIT_BYTES", 2000)  # written after each step
    model, inputs = Model(), some_inputs(4)
    expected = run(model, inputs)
    with (
        torch.no_grad(),
        visualizer.capture(model, modules=["blocks.{layer}"], out=tmp_path / "run") as captured,
    ):
        for step, x in enumerate(inputs):
            model(x)
            for seen in range(step + 1):
                got = captured.modules["blocks.1"][seen].value
                assert np.array_equal(got, expected.modules["blocks.1"][seen].value)
                got = captured.attention["blocks.2"][seen].weights()
                assert np.array_equal(got, expected.attention["blocks.2"][seen].weights())
    assert len(Store(tmp_path / "run").units) > 3


class Gate:
    """Holds the writer back until it is opened."""

    def __init__(self, monkeypatch: Any) -> None:
        self.is_open = threading.Event()
        self._write_shard = units.write_shard
        monkeypatch.setattr(units, "write_shard", self._write)

    def _write(self, *args: Any) -> Any:
        assert self.is_open.wait(10)
        return self._write_shard(*args)


def test_what_was_written_leaves_memory(tmp_path: Path, monkeypatch: Any) -> None:
    gate, model = Gate(monkeypatch), Model()
    with (
        torch.no_grad(),
        visualizer.capture(
            model, modules=["blocks.{layer}"], out=tmp_path / "run", keep="qk"
        ) as captured,
    ):
        model(torch.randn(2, 5, 32))
        entry, made = captured.modules["blocks.1"][0], captured.attention[0]
        entry.value[:] = 0  # it is a copy of what waits in memory
        kept = [weakref.ref(made.record.read().query)]
        assert kept[0]() is not None
        gate.is_open.set()
    gc.collect()
    assert kept[0]() is None
    assert entry.value.shape == (2, 5, 32)
    assert entry.value.any()
    assert made.weights().shape == (2, 4, 5, 5)


BOUNDED = """
import resource, sys, torch, visualizer
from torch import nn
model = nn.Sequential(nn.Identity())
x = torch.ones(1, 2**20)  # 4 MiB
model(x)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with visualizer.capture(model, modules="0", out=sys.argv[1], max_bytes=32 * 2**20) as captured:
    for step in range(100):
        model(x + step)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) // 1024, captured.modules["0"][99].value[0, 0])
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    mebibytes, last = done.stdout.split()
    assert int(mebibytes) < 150  # of 400
    assert last == "100.0"


def test_the_model_waits_only_at_the_bound(tmp_path: Path, monkeypatch: Any) -> None:
    gate = Gate(monkeypatch)
    model, ran = nn.Sequential(nn.Identity()), []
    size = 2**20

    def loop() -> None:
        with visualizer.capture(model, modules="0", out=tmp_path / "run", max_bytes=8 * size):
            for step in range(32):
                model(torch.full((size // 4,), float(step)))
                ran.append(step)

    thread = threading.Thread(target=loop)
    thread.start()
    while len(ran) < 8:
        assert thread.is_alive()
    thread.join(0.2)
    assert thread.is_alive()
    assert 8 <= len(ran) <= 16
    gate.is_open.set()
    thread.join(60)
    assert len(ran) == 32
    entries = visualizer.load(tmp_path / "run").modules["0"]
    assert [entry.value[0] for entry in entries] == list(range(32))


def test_attention_that_waits_at_the_bound(tmp_path: Path) -> None:
    model, inputs = Model(), [torch.randn(1, 64, 32) for _ in range(40)]
    with torch.no_grad(), visualizer.capture(model, keep="qk") as expected:
        for x in inputs:
            model(x)
    with (
        torch.no_grad(),
        visualizer.capture(model, keep="qk", out=tmp_path / "run", max_bytes=2**16) as captured,
    ):
        for x in inputs:
            model(x)
            _ = captured.attention[-1].shape  # so that no call waits
    assert len(Store(tmp_path / "run").units) > 10
    loaded = visualizer.load(tmp_path / "run")
    for got, wanted in zip(loaded.attention, expected.attention, strict=True):
        assert np.array_equal(got.weights(), wanted.weights())


@pytest.mark.parametrize("way", ["out", "background", "foreground"])
def test_a_unit_of_bfloat16_is_as_large_as_any(tmp_path: Path, monkeypatch: Any, way: str) -> None:
    monkeypatch.setattr("visualizer.store.writer.UNIT_BYTES", 2**16)
    model = nn.Sequential(nn.Linear(64, 64)).to(torch.bfloat16)
    inputs = [torch.randn(64, 64).to(torch.bfloat16) for _ in range(32)]
    out = tmp_path / "run" if way == "out" else None
    with torch.no_grad(), visualizer.capture(model, modules="0", out=out) as captured:
        for x in inputs:
            model(x)
    if out is None:
        captured.save(tmp_path / "run", background=way == "background").wait()
    shards = list((tmp_path / "run" / "shards").iterdir())
    assert len(shards) == 4  # of 2 bytes × 64 × 64 × 32
    assert all(shard.stat().st_size >= 2**16 for shard in shards)


def test_an_error_of_writing_leaves_the_model_alone_and_is_raised_at_the_end(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("visualizer.store.writer.UNIT_BYTES", 2000)
    written: list[Any] = []
    write_shard = units.write_shard

    def write_some(path: Path, pieces: Any) -> Any:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write_shard(path, pieces)

    monkeypatch.setattr(units, "write_shard", write_some)
    model, inputs = Model(), some_inputs(20)
    plain = [model(x) for x in inputs]
    outputs = []
    with (
        pytest.raises(StoreWriteError, match="No space left on device") as raised,
        visualizer.capture(
            model, modules=["blocks.{layer}"], out=tmp_path / "run", max_bytes=8000
        ) as captured,
    ):
        for x in inputs:
            outputs.append(model(x))
    assert all(torch.equal(a, b) for a, b in zip(outputs, plain, strict=True))
    assert str(tmp_path / "run") in str(raised.value)
    assert "StoreWriteError" in captured.explain()
    with pytest.warns(visualizer.errors.CaptureWarning, match="not written to its end"):
        loaded = visualizer.load(tmp_path / "run")
    assert np.array_equal(loaded.modules["blocks.0"][0].value, captured.modules["blocks.0"][0])
    assert list((tmp_path / "run" / "tmp").glob("*/*")) == []


def test_what_was_taken_before_an_exception_is_there(tmp_path: Path) -> None:
    model = Model()
    with (
        pytest.raises(ZeroDivisionError),
        visualizer.capture(model, modules=["blocks.0"], out=tmp_path / "run"),
    ):
        model(torch.randn(2, 5, 32))
        raise ZeroDivisionError
    loaded = visualizer.load(tmp_path / "run")
    assert len(loaded.modules["blocks.0"]) == 1
    assert len(loaded.attention) == 3


KILLED = """
import os, signal, sys, torch, visualizer
from torch import nn
model = nn.Sequential(nn.Identity())
with visualizer.capture(model, modules="0", out=sys.argv[1], max_bytes=8 * 2**20):
    for step in range(100):
        model(torch.full((2**18,), float(step)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.warns(visualizer.errors.CaptureWarning, match="not written to its end"):
        loaded = visualizer.load(tmp_path / "run")
    values = [entry.value[0] for entry in loaded.modules["0"]]
    assert values == list(range(len(values)))
    assert 80 <= len(values) <= 100
    assert visualizer.verify(tmp_path / "run").ok


def test_it_is_refused_where_something_is(tmp_path: Path) -> None:
    model, inputs = Model(), some_inputs(1)
    run(model, inputs, out=tmp_path / "run")
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        run(model, inputs, out=tmp_path / "run")
    expected = run(model, some_inputs(2))
    captured = run(model, some_inputs(2), out=tmp_path / "run", overwrite=True)
    assert len(captured.attention) == len(expected.attention)
    assert len(visualizer.load(tmp_path / "run").attention) == len(expected.attention)


def test_while_it_is_replaced_both_can_be_read(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("visualizer.store.writer.UNIT_BYTES", 2000)
    model, first, second = Model(), some_inputs(2), some_inputs(4)
    old, new = run(model, first), run(model, second)
    run(model, first, out=tmp_path / "run")
    with (
        torch.no_grad(),
        visualizer.capture(model, **ASKED, out=tmp_path / "run", overwrite=True) as captured,
    ):
        captured.annotate(tokens=["a", "b"], grid=2)
        for x in second:
            model(x)
        check_alike(visualizer.load(tmp_path / "run"), old)
        check_alike(captured, new)
    check_alike(visualizer.load(tmp_path / "run"), new)


@pytest.mark.parametrize("options", [{"gradients": True}, {"keep": "last"}])
def test_what_comes_later_can_not_be_spilled(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="neither gradients"):
        visualizer.capture(Model(), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_bad_options_make_no_store(tmp_path: Path) -> None:
    with pytest.raises(UnknownModuleError):
        visualizer.capture(Model(), modules="nothing", out=tmp_path / "run")
    with pytest.raises(OutOfRangeError, match="max_bytes"):
        visualizer.capture(Model(), out=tmp_path / "run", max_bytes=-1)
    assert not (tmp_path / "run").exists()


def test_a_block_that_can_not_be_opened_leaves_no_writer(tmp_path: Path, monkeypatch: Any) -> None:
    captured = visualizer.capture(Model(), out=tmp_path / "run")
    monkeypatch.setattr(captured._record, "open", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        captured.__enter__()
    monkeypatch.undo()
    run(Model(), some_inputs(1), out=tmp_path / "run", overwrite=True)  # nobody else is writing


def test_a_block_without_a_model_and_threads(tmp_path: Path) -> None:
    models = [Model() for _ in range(4)]
    inputs = some_inputs(1)[0]
    with torch.no_grad(), visualizer.capture(out=tmp_path / "run") as captured:
        threads = [threading.Thread(target=model, args=(inputs,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    loaded = visualizer.load(tmp_path / "run")
    assert len(captured.attention) == len(loaded.attention) == 12
    assert sorted(map(len, loaded.attention.layers)) == [1] * 12
    assert {made.record.site for made in loaded.attention} == set(range(12))


def test_masks_that_layers_share_are_written_once(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def forward(self, x: Any, mask: Any) -> Any:
            for _ in range(4):
                x = functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
            return x

    mask = torch.randn(1, 2, 256, 256)
    with torch.no_grad(), visualizer.capture(Masked(), out=tmp_path / "run", keep="qk"):
        Masked()(torch.randn(1, 2, 256, 8), mask)
    with torch.no_grad(), visualizer.capture(out=tmp_path / "all", keep="qk") as captured:
        Masked()(torch.randn(1, 2, 256, 8), mask)
    assert len(captured.attention) == 4
    assert Store(tmp_path / "all").nbytes < 1.5 * mask.nbytes


def test_a_spill_is_a_context_of_one_process(tmp_path: Path) -> None:
    model = Model()
    with visualizer.capture(model, modules=["blocks.0"], out=tmp_path / "run") as captured:
        model(torch.randn(2, 5, 32))
        child = os.fork()
        if child == 0:
            try:
                model(torch.randn(2, 5, 32))  # is not written, and does not fail
                code = 0 if "forked" in captured.explain() else 3
            except BaseException:
                code = 4
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(visualizer.load(tmp_path / "run").modules["blocks.0"]) == 1
