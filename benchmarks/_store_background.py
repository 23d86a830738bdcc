"""What saving adds to the time of the steps that are captured."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks._interleave import Runs, interleave, ratio_rows, time_rows
from benchmarks._models import make_bert, token_ids
from benchmarks._report import Row
from benchmarks._store_files import RAW, WRITERS
from visualizer import capture
from visualizer.captured import Captured

__all__ = ["background_rows", "spilling_rows"]

_OF_NOTHING = 1.02
_STEPS = 10
_TENSORS = 24
_NOTHING, _BACKGROUND, _FOREGROUND = "not saved", "background=True", "in the foreground"
_IN_MEMORY, _SPILLED = "in memory", "out="
_RAW = "a thread that writes and fsyncs as many bytes"


def background_rows(scratch: Path, shorter: int, runs: int) -> list[Row]:
    """Return the wall-clock time of captured forwards, with and without saving each."""
    tokens = max(16, 197 // shorter)
    model, ids = make_bert(384, 6, tokens=tokens), token_ids(tokens)
    held: list[int] = []
    calls: dict[str, list[float]] = {_BACKGROUND: [], _FOREGROUND: [], _RAW: []}

    def step() -> Captured:
        with capture(model, modules="encoder.layer.*") as captured:
            model(ids)
        return captured

    def steps(save: Callable[[Captured, Path], Any] | None, calling: list[float]) -> float:
        savings = []
        start = time.perf_counter()
        for number in range(_STEPS):
            captured = step()
            if save is not None:
                called = time.perf_counter()
                savings.append(save(captured, scratch / "steps" / str(number)))
                calling.append(time.perf_counter() - called)
        elapsed = time.perf_counter() - start
        held.append(captured.nbytes)
        for saving in savings:
            saving.wait()
        shutil.rmtree(scratch / "steps", ignore_errors=True)
        return elapsed / _STEPS

    size = step().nbytes // _TENSORS
    tensors = [torch.rand(size // 4) for _ in range(_TENSORS)]
    with ThreadPoolExecutor(1) as executor:

        def raw_in_a_thread(captured: Captured, path: Path) -> Any:
            path.mkdir(parents=True)
            writing = executor.submit(WRITERS[RAW], path, tensors=tensors)
            return SimpleNamespace(wait=writing.result)

        found = interleave(
            {
                _NOTHING: lambda: steps(None, []),
                _BACKGROUND: lambda: steps(_in_background, calls[_BACKGROUND]),
                _RAW: lambda: steps(raw_in_a_thread, calls[_RAW]),
                _FOREGROUND: lambda: steps(_in_foreground, calls[_FOREGROUND]),
            },
            runs,
        )
    title = f"BERT, 12 layers of 384, {tokens} tokens, {_STEPS} captured steps"
    return [
        Row(f"{title}, bytes a step", held[0] / 1e6, "MB"),
        *time_rows(title, found),
        *_added(title, found, calls),
    ]


def spilling_rows(scratch: Path, shorter: int, runs: int) -> list[Row]:
    """Return the wall-clock time of forwards in one block, in memory and on the way to the disk."""
    tokens = max(16, 197 // shorter)
    model, ids = make_bert(384, 6, tokens=tokens), token_ids(tokens)
    path = scratch / "spilled"

    def steps(**options: Any) -> float:
        with capture(model, modules="encoder.layer.*", **options):
            start = time.perf_counter()
            for _ in range(_STEPS):
                model(ids)
            elapsed = time.perf_counter() - start
        shutil.rmtree(path, ignore_errors=True)
        return elapsed / _STEPS

    found = interleave({_IN_MEMORY: steps, _SPILLED: lambda: steps(out=path)}, runs)
    title = f"BERT, 12 layers of 384, {tokens} tokens, {_STEPS} steps in one block"
    of = f"{title}, {_SPILLED} / {_IN_MEMORY}"
    return [
        *time_rows(title, found),
        *ratio_rows(of, found[_SPILLED], found[_IN_MEMORY], _OF_NOTHING),
    ]


def _in_background(captured: Captured, path: Path) -> Any:
    return captured.save(path, background=True)


def _in_foreground(captured: Captured, path: Path) -> Any:
    return captured.save(path)


def _added(title: str, found: dict[str, Runs], calls: dict[str, list[float]]) -> list[Row]:
    rows = []
    for name, target in ((_BACKGROUND, _OF_NOTHING), (_RAW, None), (_FOREGROUND, None)):
        of = f"{title}, {name} / {_NOTHING}"
        rows += ratio_rows(of, found[name], found[_NOTHING], target)
        within = statistics.median(calls[name]) * 1e3
        rows.append(Row(f"{title}, {name}, within the call of save", within, "ms"))
    return rows
