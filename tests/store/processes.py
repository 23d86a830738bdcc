"""What the tests of crashes share: a capture, processes that are killed, what a store must hold."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

import visualizer
from tests.block.samples import Tiny
from visualizer.store import Store, writer

UNIT_BYTES = 3000


def a_capture(seed: int, depth: int = 3) -> Any:
    """Return a capture whose values are another seed's other ones."""
    torch.manual_seed(seed)
    model = Tiny(depth).eval()
    paths = ["blocks.*.mlp", "blocks.*.mlp.0", "blocks.*.attn.proj"]
    with torch.no_grad(), visualizer.capture(model, modules=paths) as captured:
        model(torch.randn(2, 6, 16))
    return captured


def values_of(captured: Any) -> dict[tuple[str, int], Any]:
    """Return all outputs and maps of a capture, as arrays."""
    found = {
        (path, call): np.asarray(entry.value)
        for path in captured.modules
        for call, entry in enumerate(captured.modules[path])
    }
    maps = {("map", place): np.asarray(made) for place, made in enumerate(captured.attention)}
    return found | maps


def equal(some: dict[Any, Any], others: dict[Any, Any]) -> bool:
    return some.keys() == others.keys() and all(np.array_equal(some[k], others[k]) for k in some)


def fork(work: Callable[[], Any]) -> int:
    """Do something in a process of its own, and return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks where there are threads
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def reap(pid: int) -> int:
    """Wait for a process, and return its exit code; the negative signal of one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def save_in_units(captured: Any, path: Path, told: int | None = None, **options: Any) -> None:
    """Save in small units, and tell of each that was committed. For a process of its own."""
    commit = writer.commit

    def commit_and_tell(layout: Any, owner: Any, place: Any, *args: Any) -> Any:
        found = commit(layout, owner, place, *args)
        if told is not None:
            os.write(told, f"{place.number}\n".encode())
        return found

    writer.commit, writer.UNIT_BYTES = commit_and_tell, UNIT_BYTES
    captured.save(path, **options)


def read_all(descriptor: int) -> str:
    with open(descriptor, closefd=True) as file:
        return file.read()


def check_files(path: Path) -> None:
    """Make sure that there is nothing in a store but complete files."""
    layout = Store(path).layout
    for file in (path / "shards").iterdir():
        assert layout.units_in(file.parent), file
        with safe_open(file, "np") as opened:  # which refuses what is cut off
            assert list(opened.keys())
    for file in (path / "index").iterdir():
        assert file.read_bytes().endswith(b"}\n")
        has_shard = b'"shard_bytes":0' not in file.read_bytes().splitlines()[0]
        assert not has_shard or layout.shard(int(file.stem[1:])).exists()
