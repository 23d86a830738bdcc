"""Saving in the background takes no copies, and still writes what was captured."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import visualizer
from visualizer.errors import OverwrittenError
from visualizer.store import units
from visualizer.store.queue import queue


@pytest.fixture
def held_back() -> Any:
    """Hold the writer's thread back until the event is set."""
    event = threading.Event()
    queue.submit(0, lambda: None if event.wait(60) else None)
    yield event
    event.set()


def capture_some() -> Any:
    model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(3)))
    with torch.no_grad(), visualizer.capture(model, modules="*") as captured:
        model(torch.randn(4, 5))
    return captured


def test_what_nobody_has_read_can_be_read_while_it_waits(tmp_path: Path, held_back: Any) -> None:
    captured = capture_some()
    saving = captured.save(tmp_path / "run", background=True)
    values = {path: entries[0].value.copy() for path, entries in captured.modules.items()}
    held_back.set()
    saving.wait()
    loaded = visualizer.load(tmp_path / "run")
    for path, value in values.items():
        assert np.array_equal(loaded.modules[path][0].value, value)


@pytest.mark.parametrize("is_read_before", [False, True])
def test_what_is_changed_while_it_waits_is_left_out(
    tmp_path: Path, held_back: Any, is_read_before: bool
) -> None:
    captured = capture_some()
    if is_read_before:
        value = captured.modules["1"][0].value
    saving = captured.save(tmp_path / "run", background=True)
    if not is_read_before:
        value = captured.modules["1"][0].value
    value[2, 3] += 1
    held_back.set()
    with pytest.raises(OverwrittenError, match="output of 1, call 0"):
        saving.wait()
    loaded = visualizer.load(tmp_path / "run")
    assert loaded.modules["1"] == []
    assert np.array_equal(loaded.modules["2"][0].value, captured.modules["2"][0].value)
    assert visualizer.verify(tmp_path / "run").ok


def test_what_is_changed_while_it_is_written_is_left_out(tmp_path: Path, monkeypatch: Any) -> None:
    captured = capture_some()
    write_shard = units.write_shard
    changed: list[Any] = []

    def change_and_write(*args: Any) -> Any:
        if not changed:
            changed.append(captured.modules["1"][0].value)
            changed[0][0, 0] += 1
        return write_shard(*args)

    monkeypatch.setattr(units, "write_shard", change_and_write)
    with pytest.raises(OverwrittenError, match="output of 1, call 0"):
        captured.save(tmp_path / "run", background=True).wait()
    loaded = visualizer.load(tmp_path / "run")
    assert loaded.modules["1"] == []
    assert np.array_equal(loaded.modules["0"][0].value, captured.modules["0"][0].value)
    assert visualizer.verify(tmp_path / "run").ok


def test_what_has_the_same_bytes_does_not_suffer(tmp_path: Path, held_back: Any) -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity())
    x = torch.randn(4, 5)
    with visualizer.capture(model, modules="*", inputs=True) as captured:
        model(x)
    saving = captured.save(tmp_path / "run", background=True)
    for path in ("0", "1"):
        captured.modules[path][0].value[:] = 7
    held_back.set()
    saving.wait()  # the same bytes are still there elsewhere, and are what is written
    loaded = visualizer.load(tmp_path / "run")
    for path in ("0", "1", "2"):
        assert np.array_equal(loaded.modules[path][0].value, x)
        assert np.array_equal(loaded.inputs[path][0].value.args[0], x)


def test_values_that_were_changed_before_are_saved_as_they_are(tmp_path: Path) -> None:
    captured = capture_some()
    captured.modules["1"][0].value[:] = 7
    captured.save(tmp_path / "run", background=True).wait()
    assert (visualizer.load(tmp_path / "run").modules["1"][0].value == 7).all()


def test_the_order_of_calls_stays(tmp_path: Path, held_back: Any) -> None:
    model = nn.Sequential(nn.Identity())
    with visualizer.capture(model, modules="*") as captured:
        for call in range(5):
            model(torch.full((3,), float(call)))
    saving = captured.save(tmp_path / "run", background=True)
    for call in (3, 1):
        assert captured.modules["0"][call].value[0] == call
    held_back.set()
    saving.wait()
    entries = visualizer.load(tmp_path / "run").modules["0"]
    assert [(entry.call, entry.value[0]) for entry in entries] == [(n, n) for n in range(5)]


class Keeping(nn.Module):
    """Keeps the queries that it attended with, as somebody may who goes on to use them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.query = x * 2
        return nn.functional.scaled_dot_product_attention(self.query, x, x)


@pytest.mark.parametrize("is_written_first", [False, True])
def test_queries_that_are_changed_while_they_are_written_are_left_out(
    tmp_path: Path, monkeypatch: Any, is_written_first: bool
) -> None:
    model = Keeping()
    with torch.no_grad(), visualizer.capture(model, modules=[""]) as captured:
        model(torch.randn(1, 2, 5, 4))
    write_shard = units.write_shard
    times: list[int] = []

    def change_and_write(*args: Any) -> Any:
        times.append(1)
        if is_written_first or len(times) > 1:
            written = write_shard(*args)
        if len(times) == 1:
            model.query.add_(1)
        return written if is_written_first or len(times) > 1 else write_shard(*args)

    monkeypatch.setattr(units, "write_shard", change_and_write)
    with pytest.raises(OverwrittenError, match="attention of"):
        captured.save(tmp_path / "run", background=True).wait()
    loaded = visualizer.load(tmp_path / "run")
    assert len(loaded.attention) == 0
    assert np.array_equal(loaded.modules[""][0].value, captured.modules[""][0].value)
    assert visualizer.verify(tmp_path / "run").ok
