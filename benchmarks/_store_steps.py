"""Saving many small tensors, and how many files they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._interleave import interleave, time_rows
from benchmarks._report import Row
from benchmarks._store_files import (
    OURS,
    RAW,
    captured_tensors,
    fresh,
    time_writing,
    write_pt,
    write_raw,
)
from visualizer.captured import Captured

__all__ = ["steps_rows"]

_MODULES = 12
_FLOATS = 30_000
_FILE_BYTES = 64 * 2**20
_PT = ".pt per tensor, no fsync"


def steps_rows(scratch: Path, shorter: int, runs: int) -> list[Row]:
    """Return the data files, and the time that it takes until they are on the disk."""
    steps = max(1, 500 // shorter)
    made = [torch.rand(_FLOATS) for _ in range(steps * _MODULES)]
    tensors = iter(made)
    captured = captured_tensors([partial(next, tensors)] * _MODULES, steps)
    size = sum(tensor.nbytes for tensor in made)
    title = f"{steps} steps × {_MODULES} tensors of {_FLOATS * 4 / 1e3:.0f} KB"
    files = _count_files(scratch / "counted", captured)
    found = interleave(_contenders(scratch, captured, made), runs)
    return [
        Row(f"{title}, bytes", size / 1e6, "MB"),
        Row(f"{title}, data files", files, ""),
        Row(f"{title}, data files / 64 MiB begun", files / -(-size // _FILE_BYTES), "x", target=1),
        *time_rows(title, found),
        Row(f"{title}, {OURS} / {RAW}", found[OURS].ms / found[RAW].ms, "x"),
        Row(f"{title}, {OURS} / {_PT}", found[OURS].ms / found[_PT].ms, "x"),
    ]


def _contenders(
    scratch: Path, captured: Captured, made: Sequence[Tensor]
) -> dict[str, Callable[[], float]]:
    ours, theirs = scratch / "ours", scratch / "theirs"
    pt = partial(write_pt, tensors=made, durable=False)
    return {
        OURS: lambda: time_writing(ours, lambda path: captured.save(path / "run")),
        RAW: lambda: time_writing(theirs, partial(write_raw, tensors=made)),
        _PT: lambda: time_writing(theirs, pt),
    }


def _count_files(folder: Path, captured: Captured) -> int:
    with fresh(folder):
        captured.save(folder / "run")
        return sum(1 for _ in folder.rglob("*.safetensors"))
