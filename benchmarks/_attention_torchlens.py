"""Capturing the attention of a forward, against torchlens.

torchlens has maps as `trace.modules[path].facets.pattern`, which it rebuilds, whole, from the
arguments of fused attention each time it is read. It keeps these where a forward was traced with
`reconstruction_ready=True`. Told to save the outputs of these calls only, it holds the least.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks._interleave import cpu_time, interleave, ratio_rows, time_rows
from benchmarks._memory import live_bytes
from benchmarks._models import make_llama, token_ids
from benchmarks._report import Row
from visualizer import capture

__all__ = ["torchlens_rows"]

_FASTER, _LESS = 1 / 2, 1 / 20
_OURS = "capture(model)"
_TRACES = {
    "torchlens": "tl.trace(model, ids, reconstruction_ready=True)",
    "torchlens, attention only": (
        "tl.trace(model, ids, reconstruction_ready=True, "
        "save=tl.func('scaled_dot_product_attention'))"
    ),
}
"""What torchlens is told."""
_MAPS = ", and all maps as arrays"


def torchlens_rows(tokens: int, runs: int) -> list[Row]:
    """Return time and bytes of capturing a Llama's forward, and of reading its maps."""
    title = f"Llama, {tokens} tokens"
    if importlib.util.find_spec("torchlens") is None:
        reason = "torchlens is not installed: pip install torchlens"
        return [Row(f"{title}, against torchlens", left_out=reason)]
    print("".join(f"{name}: {call}\n" for name, call in _TRACES.items()))
    takes = _takes(tokens)
    contenders: dict[str, Callable[[], float]] = {}
    for name, (take, read) in takes.items():
        contenders[name] = partial(cpu_time, take)
        contenders[name + _MAPS] = partial(_time_with_maps, take, read)
    _compare(takes)
    found = interleave(contenders, runs)
    held = {name: _held(take) for name, (take, _) in takes.items()}
    rows = time_rows(title, found)
    for trace in _TRACES:
        for what in ("", _MAPS):
            ours, theirs = found[_OURS + what], found[trace + what]
            rows += ratio_rows(f"{title}, {_OURS} / {trace}{what}", ours, theirs, _FASTER)
    rows += [Row(f"{title}, held, {name}", size / 1e6, "MB") for name, size in held.items()]
    return rows + [
        Row(f"{title}, held, {_OURS} / {name}", held[_OURS] / held[name], "x", target=_LESS)
        for name in _TRACES
    ]


def _time_with_maps(take: Callable[[], Any], read: Callable[[Any], list[Any]]) -> float:
    return cpu_time(lambda: read(take()))


def _takes(tokens: int) -> dict[str, tuple[Callable[[], Any], Callable[[Any], list[Any]]]]:
    """Return what captures a forward, and what reads the maps of that."""
    torchlens = importlib.import_module("torchlens")
    model, ids = make_llama(tokens=tokens), token_ids(tokens)

    def ours() -> Any:
        with capture(model) as captured:
            model(ids)
        return captured

    def theirs(**chosen: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torchlens.trace(model, ids, reconstruction_ready=True, **chosen)

    paths = [f"layers.{layer}.self_attn" for layer in range(2)]
    least = {"save": torchlens.func("scaled_dot_product_attention")}
    traces = {
        name: (
            partial(theirs, **options),
            lambda trace: [trace.modules[path].facets.pattern.value.numpy() for path in paths],
        )
        for name, options in zip(_TRACES, ({}, least), strict=True)
    }
    return {_OURS: (ours, lambda taken: [each.weights() for each in taken.attention]), **traces}


def _compare(takes: dict[str, tuple[Callable[[], Any], Callable[[Any], list[Any]]]]) -> None:
    """Make sure that all have the same maps; this warms up, too.

    Raises:
        RuntimeError: They do not.
    """
    maps = {name: read(take()) for name, (take, read) in takes.items()}
    for name, theirs in maps.items():
        for our, their in zip(maps[_OURS], theirs, strict=True):
            if not np.allclose(our, their, atol=1e-5):
                raise RuntimeError(f"the maps of {name} are not those of {_OURS}")


def _held(take: Callable[[], Any]) -> int:
    before = live_bytes()
    taken = take()
    after = live_bytes()
    del taken
    return after - before
