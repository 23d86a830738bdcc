"""Reading one layer of a large run that is not in memory."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what people call it

from benchmarks._interleave import interleave, ratio_rows, time_rows
from benchmarks._memory import can_measure_peaks, peak_bytes
from benchmarks._report import Row
from benchmarks._store_files import captured_tensors, fresh
from visualizer import capture, load
from visualizer.store import Store

__all__ = ["one_layer", "read_rows"]

_OF_RAW = 1.5
_OF_LAYER = 2.0
_LAYERS = 24
_LAYER_BYTES = 64 * 2**20
_OURS, _RAW = "load and one layer, cold", "raw cold read of its bytes"
_MAP, _RAW_MAP = "load and a row of one map, cold", "raw cold read of its queries and keys"


def read_rows(scratch: Path, shorter: int, runs: int) -> list[Row]:
    """Return how long one layer takes to read, and how much memory."""
    size = max(2**12, _LAYER_BYTES // shorter)
    return [
        *_layer_rows(scratch, size, runs),
        *_peak_rows(size, min(3, runs)),
        *_map_rows(scratch, max(16, 1024 // shorter), runs),
    ]


def _layer_rows(scratch: Path, size: int, runs: int) -> list[Row]:
    title = f"a run of {_LAYERS} × {size / 1e6:.3g} MB"
    with fresh(scratch / "read"):
        path = scratch / "read" / "run"
        _save(path, size, _LAYERS)
        layers = itertools.cycle(range(_LAYERS))
        found = interleave(
            {
                "load, cold": lambda: _cold(path, lambda: load(path)),
                _OURS: lambda: _cold(path, partial(_value, path, next(layers))),
                _RAW: lambda: _time_raw(path, "output", next(layers)),
            },
            runs,
        )
    return [
        *time_rows(title, found),
        *ratio_rows(f"{title}, {_OURS} / raw", found[_OURS], found[_RAW], _OF_RAW),
    ]


def _save(path: Path, size: int, layers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    make = partial(torch.rand, size // 4, generator=generator)
    captured_tensors([make] * layers).save(path)


def _value(path: Path, layer: int) -> Any:
    return load(path).modules[f"layers.{layer}"][0].value


def _cold(path: Path, read: Callable[[], object]) -> float:
    """Return the seconds that reading takes, with nothing of a store in the page cache."""
    for file in path.rglob("*"):
        if file.is_file():
            _drop(file)
    start = time.perf_counter()
    found = read()
    elapsed = time.perf_counter() - start
    del found
    return elapsed


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _time_raw(path: Path, kind: str, number: int) -> float:
    """Return the seconds that the same bytes take, read from the same places."""
    row = [row for row in Store(path).rows if row.kind == kind][number]
    places = list(_places(row.value))
    return _cold(path, lambda: [_read(path, *place) for place in places])


def _places(tree: Any) -> Any:
    if isinstance(tree, Mapping) and "xxh3_128" in tree:
        yield tree["unit"], tree["at"], tree["bytes"]
    elif isinstance(tree, Mapping | list):
        for each in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _places(each)


def _read(path: Path, unit: int, at: int, size: int) -> Any:
    buffer = np.empty(size, np.uint8)
    rest = buffer.data
    with (path / "shards" / f"u{unit:08d}.safetensors").open("rb", buffering=0) as file:
        file.seek(at)
        while rest:
            rest = rest[file.readinto(rest) :]
    return buffer


def one_layer(size: int) -> Callable[[], Any]:
    """Return what loads a store and reads one layer of so many bytes."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "run"
    _save(path, size, 3)
    _value(path, 0)  # what is imported or allocated once does not count

    def work() -> Any:
        found = _value(path, 1)
        folder.cleanup()
        return found

    return work


def _peak_rows(size: int, repeats: int) -> list[Row]:
    title = f"one layer of {size / 1e6:.3g} MB, peak of the memory / its bytes"
    if not can_measure_peaks():
        return [Row(title, left_out="the peak of the resident memory is read from Linux's /proc")]
    return [Row(title, peak_bytes("stored layer", size, repeats) / size, "x", target=_OF_LAYER)]


class _Attends(nn.Module):
    """Attends with queries and keys of its own."""

    def forward(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
        return F.scaled_dot_product_attention(query, key, value)


def _map_rows(scratch: Path, tokens: int, runs: int) -> list[Row]:
    shape = (1, 64, tokens, 64)
    title = f"a run of {_LAYERS} attention calls of {shape}"
    generator = torch.Generator().manual_seed(0)
    model = nn.ModuleList(_Attends() for _ in range(_LAYERS))
    with capture() as captured:
        for layer in model:
            layer(shape, generator)
    with fresh(scratch / "maps"):
        path = scratch / "maps" / "run"
        captured.save(path)
        layers = itertools.cycle(range(_LAYERS))
        found = interleave(
            {
                _MAP: lambda: _cold(path, lambda: load(path).attention[next(layers)].row(5)),
                _RAW_MAP: lambda: _time_raw(path, "attention", next(layers)),
            },
            runs,
        )
    return [
        *time_rows(title, found),
        *ratio_rows(f"{title}, {_MAP} / raw", found[_MAP], found[_RAW_MAP]),
    ]
