"""What taking a local adds to a call, against the other ways to take it, and to a ViT-S."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks._functions import (
    BARE,
    BRANCH_LIST_SINK,
    LIST_SINK,
    WRAPPER,
    function_contenders,
)
from benchmarks._machine import describe_machine, positive
from benchmarks._report import Row, render_table, save_json
from benchmarks._timing import Contender, Timing, time_contenders

__all__ = ["add_arguments", "run"]

_LIST_SINK_NS = 10
_OF_WRAPPER = 0.1
_OF_CLONE = 2.5
_OF_BY_HAND = 1.03

_NEEDS_TORCH = (
    "bare function of a tensor",
    "detach().clone(), nothing else",
    "get_local, 4x4 tensor",
    "wrapper design, 4x4 tensor",
    "bare module",
    "register_forward_hook",
    "get_local / detach().clone(), 4x4 tensor",
    "ViT-S, plain",
    "ViT-S, plain, CPU time",
    "ViT-S, by hand",
    "ViT-S, by hand, CPU time",
    "ViT-S, get_local",
    "ViT-S, get_local, CPU time",
    "ViT-S, get_local / by hand",
    "ViT-S, get_local / by hand, run by run",
    "ViT-S, get_local / by hand, CPU time",
    "ViT-S, get_local / plain",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=positive, default=1000, help="default: %(default)s")
    parser.add_argument(
        "--calls", type=positive, default=2000, help="calls a round; default: %(default)s"
    )
    parser.add_argument(
        "--vit-runs",
        type=positive,
        help="forwards of each ViT-S; default: 40, or --rounds if less",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")


def run(arguments: argparse.Namespace) -> int:
    """Measure everything, print the table. A missed target is no error."""
    has_torch = importlib.util.find_spec("torch") is not None
    about = describe_machine("torch") if has_torch else describe_machine()
    about |= {"rounds": arguments.rounds, "calls": arguments.calls}
    rows = _call_rows(arguments.rounds, arguments.calls, has_torch)
    if not hasattr(sys, "monitoring"):
        rows.append(Row("sys.monitoring", left_out="it came with Python 3.12"))
    if has_torch:
        rows += _forward_rows(arguments.vit_runs or min(40, arguments.rounds))
    else:
        rows += [Row(name, left_out="torch is not installed") for name in _NEEDS_TORCH]
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    print("ns: added to a call over the bare one, fastest round; ms: a forward, median run\n")
    print(render_table(rows))
    if arguments.json is not None:
        save_json(arguments.json, about, rows)
    return 0


def _call_rows(rounds: int, calls: int, has_torch: bool) -> list[Row]:
    def contenders_for(stack: ExitStack) -> list[Contender]:
        contenders = function_contenders(stack)
        if has_torch:
            from benchmarks._tensors import tensor_contenders

            contenders += tensor_contenders(stack)
        return contenders

    contenders, timings = time_contenders(contenders_for, rounds=rounds, calls=calls)
    rows = [_added_row(contender, timings) for contender in contenders]
    rows.append(_wrapper_ratio(timings))
    if has_torch:
        rows.append(_clone_ratio(timings))
    return rows


def _added_row(contender: Contender, timings: dict[str, Timing]) -> Row:
    timing = timings[contender.name]
    base = timings[contender.base].best if contender.base is not None else 0.0
    target = _LIST_SINK_NS if contender.name in {LIST_SINK, BRANCH_LIST_SINK} else None
    return Row(contender.name, timing.best - base, spread=timing.spread, target=target)


def _wrapper_ratio(timings: dict[str, Timing]) -> Row:
    ours, theirs = (timings[name].best - timings[BARE].best for name in (LIST_SINK, WRAPPER))
    return Row("list sink / wrapper design", ours / theirs, "x", target=_OF_WRAPPER)


def _clone_ratio(timings: dict[str, Timing]) -> Row:
    from benchmarks._tensors import BARE_TENSOR, CLONE, GET_LOCAL_TENSOR

    bare = timings[BARE_TENSOR].best
    ratio = (timings[GET_LOCAL_TENSOR].best - bare) / (timings[CLONE].best - bare)
    return Row("get_local / detach().clone(), 4x4 tensor", ratio, "x", target=_OF_CLONE)


def _forward_rows(runs: int) -> list[Row]:
    from benchmarks._vit import time_forwards

    found = time_forwards(runs)
    rows = []
    for name, forwards in found.items():
        rows.append(Row(f"ViT-S, {name}", forwards.wall_ms, "ms", forwards.spread_ms))
        rows.append(Row(f"ViT-S, {name}, CPU time", forwards.cpu_ms, "ms"))
    ours, by_hand, plain = found["get_local"], found["by hand"], found["plain"]
    ratios = [our / their for our, their in zip(ours.wall, by_hand.wall, strict=True)]
    return [
        *rows,
        Row("ViT-S, get_local / by hand", ours.wall_ms / by_hand.wall_ms, "x", target=_OF_BY_HAND),
        Row("ViT-S, get_local / by hand, run by run", statistics.median(ratios), "x"),
        Row("ViT-S, get_local / by hand, CPU time", ours.cpu_ms / by_hand.cpu_ms, "x"),
        Row("ViT-S, get_local / plain", ours.wall_ms / plain.wall_ms, "x"),
    ]
