"""Saving a capture, beside other ways to have the same tensors on the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._interleave import interleave, ratio_rows, time_rows
from benchmarks._report import Row
from benchmarks._store_files import (
    OURS,
    RAW,
    WRITERS,
    captured_tensors,
    file_bytes,
    fresh,
    over_raw,
    time_writing,
    write_json,
)
from visualizer import load
from visualizer.captured import Captured

__all__ = ["write_rows"]

_OF_RAW = 1.3
_JSON_RUNS = 2


def write_rows(scratch: Path, shorter: int, runs: int) -> list[Row]:
    """Return how long it takes until a capture is on the disk, over a raw write of its bytes."""
    queries = max(1, 197 // shorter)
    attn = [torch.rand(1, 12, queries, 197).softmax(-1) for _ in range(12)]
    act = [torch.randn(1, max(1, 1024 // shorter), 2048).bfloat16() for _ in range(24)]
    attn_title, act_title = _title("attn", attn), _title("act", act)
    return [
        *_rows(attn_title, scratch, attn, runs),
        *_json_rows(attn_title, scratch, attn, min(_JSON_RUNS, runs)),
        *_rows(act_title, scratch, act, runs),
    ]


def _title(name: str, tensors: Sequence[Tensor]) -> str:
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    return f"{name}, {len(tensors)} × {tuple(tensors[0].shape)} {dtype}"


def _rows(title: str, scratch: Path, tensors: Sequence[Tensor], runs: int) -> list[Row]:
    captured = captured_tensors([partial(_same, tensor) for tensor in tensors])
    size = _check(scratch / "checked", captured, tensors)
    contenders: dict[str, Callable[[], float]] = {
        OURS: lambda: time_writing(scratch / "ours", lambda path: captured.save(path / "run"))
    }
    for name, write in WRITERS.items():
        contenders[name] = partial(
            time_writing, scratch / "theirs", partial(write, tensors=tensors)
        )
    found = interleave(contenders, runs)
    raw = sum(tensor.nbytes for tensor in tensors)
    return [
        Row(f"{title}, bytes", raw / 1e6, "MB"),
        *time_rows(title, found),
        *over_raw(title, found, _OF_RAW),
        *ratio_rows(f"{title}, {OURS} / raw", found[OURS], found[RAW])[1:],
        Row(f"{title}, bytes on the disk / bytes", size / raw, "x"),
    ]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _check(folder: Path, captured: Captured, tensors: Sequence[Tensor]) -> int:
    """Make sure that what is saved is what was given; return its bytes on the disk.

    Raises:
        RuntimeError: It is not.
    """
    with fresh(folder):
        captured.save(folder / "run")
        loaded = load(folder / "run")
        for number, tensor in enumerate(tensors):
            found = torch.as_tensor(loaded.modules[f"layers.{number}"][0].value)
            if not torch.equal(found, tensor.to(found.dtype)):
                raise RuntimeError(f"tensor {number} is not what was saved")
        return file_bytes(folder)


def _json_rows(title: str, scratch: Path, tensors: Sequence[Tensor], runs: int) -> list[Row]:
    name = "nested JSON + fsync"
    json, raw = partial(write_json, tensors=tensors), partial(WRITERS[RAW], tensors=tensors)
    found = interleave(
        {
            name: lambda: time_writing(scratch / "theirs", json),
            RAW: lambda: time_writing(scratch / "theirs", raw),
        },
        runs,
    )
    return [
        Row(f"{title}, {name}", found[name].ms, "ms", found[name].spread_ms),
        Row(f"{title}, {name} / raw", found[name].ms / found[RAW].ms, "x"),
    ]
