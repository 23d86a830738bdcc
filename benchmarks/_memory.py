"""Bytes that are held, and the most that were resident, each peak in a process of its own."""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["can_measure_peaks", "live_bytes", "peak_bytes"]

_ROOT = Path(__file__).parents[1]
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # https://docs.kernel.org/filesystems/proc.html


def live_bytes() -> int:
    """Return the bytes of the distinct storages of all tensors that Python knows."""
    gc.collect()
    sizes: dict[int, int] = {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor):
            try:
                storage = each.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
            except (NotImplementedError, RuntimeError):  # it has no storage, as a sparse tensor
                continue
    return sum(sizes.values())


def can_measure_peaks() -> bool:
    """Tell whether the peak of the resident memory can be read and reset: on Linux."""
    return os.access(_CLEAR, os.W_OK) and "VmHWM" in _STATUS.read_text(encoding="ascii")


def peak_bytes(what: str, tokens: int, repeats: int) -> float:
    """Return how far the resident memory rises above where it was before: the median of processes.

    Args:
        what: One of `WORK`.
        tokens: How many; of a stored layer the bytes.
        repeats: How many processes.
    """
    return statistics.median(_peak_of_process(what, tokens) for _ in range(repeats))


def _peak_of_process(what: str, tokens: int) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._memory", what, str(tokens)],
        cwd=_ROOT,
        # Freed tensors go back to the system at once, so that the peak is of what is in use.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(json.loads(done.stdout)["peak"])


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _measure(work: Callable[[], Any]) -> int:
    gc.collect()
    before = _resident("VmRSS")
    _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    kept = work()
    peak = _resident("VmHWM")
    del kept
    return peak - before


def _forward(attention: str, tokens: int, **options: Any) -> Callable[[], Any]:
    from benchmarks._models import make_llama, token_ids

    model = make_llama(attention, tokens=tokens)
    model(token_ids(64), **options)
    return lambda: model(token_ids(tokens), **options)


def _captured(tokens: int) -> Callable[[], Any]:
    from benchmarks._models import make_llama, token_ids
    from visualizer import capture

    model = make_llama(tokens=tokens)

    def forward(count: int) -> Any:
        with capture(model) as captured:
            output = model(token_ids(count))
        return captured, output

    forward(64)
    return lambda: forward(tokens)


def _entropy(tokens: int) -> Callable[[], Any]:
    from benchmarks._attention_entropy import captured_map

    captured_map(64).entropy()
    return captured_map(tokens).entropy


def _relevance(name: str, tokens: int) -> Callable[[], Any]:
    from benchmarks import _attention_relevance

    make: Callable[[int], Callable[[], Any]] = getattr(_attention_relevance, name)
    make(64)()
    return make(tokens)


def _stored_layer(size: int) -> Callable[[], Any]:
    from benchmarks._store_read import one_layer

    return one_layer(size)


WORK: dict[str, Callable[[int], Callable[[], Any]]] = {
    "plain": lambda tokens: _forward("sdpa", tokens),
    "captured": _captured,
    "eager": lambda tokens: _forward("eager", tokens, output_attentions=True),
    "entropy": _entropy,
    "relevance": lambda tokens: _relevance("captured_row", tokens),
    "eager relevance": lambda tokens: _relevance("eager_row", tokens),
    "stored layer": _stored_layer,
}
"""Each makes what is measured."""


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=WORK)
    parser.add_argument("tokens", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        work = WORK[arguments.what](arguments.tokens)
        print(json.dumps({"peak": _measure(work)}))


if __name__ == "__main__":
    _main()
