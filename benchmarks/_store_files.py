"""Ways to put tensors on the disk, so that they survive, and a model whose modules return them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks._interleave import Runs
from benchmarks._report import Row
from visualizer import capture
from visualizer.captured import Captured

__all__ = [
    "OURS",
    "RAW",
    "WRITERS",
    "captured_tensors",
    "file_bytes",
    "fresh",
    "over_raw",
    "sync",
    "time_writing",
    "write_json",
    "write_pt",
    "write_raw",
]

OURS = "captured.save"
RAW = "raw write + fsync"


class Write(Protocol):
    """Writes tensors into a folder."""

    def __call__(self, folder: Path, tensors: Sequence[Tensor]) -> None: ...


class _Returns(nn.Module):
    """Returns what it is told to."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self._make = make

    def forward(self) -> Tensor:
        return self._make()


class _Layers(nn.Module):
    """Calls a layer for each tensor."""

    def __init__(self, makes: Sequence[Callable[[], Tensor]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(_Returns, makes))

    def forward(self) -> None:
        for layer in self.layers:
            layer()


def captured_tensors(makes: Sequence[Callable[[], Tensor]], calls: int = 1) -> Captured:
    """Capture modules that return tensors.

    Args:
        makes: What each returns.
        calls: How many forwards.
    """
    model = _Layers(makes)
    with capture(model, modules="layers.{layer}", attention=False) as captured:
        for _ in range(calls):
            model()
    return captured


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """Make a folder, and remove it with what is in it."""
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def sync(path: Path) -> None:
    """Force a file, or which files a folder has, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def time_writing(folder: Path, write: Callable[[Path], object]) -> float:
    """Return the seconds that it takes to write into a folder, which is removed.

    Args:
        folder: It; made anew.
        write: Writes, and returns when that would survive.
    """
    with fresh(folder):
        os.sync()  # what others wrote does not count
        start = time.perf_counter()
        write(folder)
        return time.perf_counter() - start


def write_raw(folder: Path, tensors: Sequence[Tensor]) -> None:
    """Write the bytes of tensors to one file."""
    with (folder / "raw").open("wb", buffering=0) as file:
        for tensor in tensors:
            view = tensor.view(-1).view(torch.uint8).numpy().data
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())


def write_safetensors(folder: Path, tensors: Sequence[Tensor]) -> None:
    """Write tensors to one file of safetensors."""
    path = folder / "all.safetensors"
    safetensors.torch.save_file({f"t{i}": tensor for i, tensor in enumerate(tensors)}, path)
    sync(path)


def write_pt(folder: Path, tensors: Sequence[Tensor], *, durable: bool = True) -> None:
    """Write each tensor to a file of its own with `torch.save`."""
    for number, tensor in enumerate(tensors):
        path = folder / f"{number}.pt"
        torch.save(tensor, path)
        if durable:
            sync(path)


def write_npz(folder: Path, tensors: Sequence[Tensor]) -> None:
    """Write tensors to one npz; of bfloat16, which numpy has not, the bits."""
    arrays = {f"t{number}": _as_array(tensor) for number, tensor in enumerate(tensors)}
    np.savez(folder / "all.npz", allow_pickle=False, **arrays)
    sync(folder / "all.npz")


def _as_array(tensor: Tensor) -> Any:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def write_json(folder: Path, tensors: Sequence[Tensor]) -> None:
    """Write tensors as nested lists."""
    with (folder / "all.json").open("w") as file:
        json.dump([tensor.tolist() for tensor in tensors], file)
        file.flush()
        os.fsync(file.fileno())


WRITERS: Mapping[str, Write] = {
    RAW: write_raw,
    "safetensors.torch.save_file + fsync": write_safetensors,
    ".pt per tensor + fsync": write_pt,
    "npz + fsync": write_npz,
}
"""What ours stands beside."""


def over_raw(title: str, found: Mapping[str, Runs], target: float) -> list[Row]:
    """Return what each takes, over the raw write of the same bytes."""
    raw = found[RAW]
    return [
        Row(
            f"{title}, {name} / raw", runs.ms / raw.ms, "x", target=target if name == OURS else None
        )
        for name, runs in found.items()
        if name != RAW
    ]


def file_bytes(folder: Path, name: str = "*") -> int:
    """Return the bytes of the files beneath a folder."""
    return sum(path.stat().st_size for path in folder.rglob(name) if path.is_file())
