"""What it costs to have a capture on the disk, and to read a part of it, beside its peers."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks._machine import describe_machine, positive
from benchmarks._report import Row, render_table, save_json

__all__ = ["add_arguments", "run"]

_PARTS: Final = {
    "write": "_store_write:write_rows",
    "read": "_store_read:read_rows",
    "background": "_store_background:background_rows",
    "spilling": "_store_background:spilling_rows",
    "steps": "_store_steps:steps_rows",
}
"""`module:function`, which is given a folder, what lengths are divided by, and runs."""

_MOST_RUNS: Final = {"steps": 5}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", choices=_PARTS, action="append", help="this part; may be given again"
    )
    parser.add_argument("--runs", type=positive, default=12, help="default: %(default)s")
    parser.add_argument(
        "--shorter", type=positive, default=1, metavar="N", help="divide all sizes, to try it out"
    )
    parser.add_argument(
        "--folder", type=Path, help="on the disk that is measured; default: that of temporary files"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")


def run(arguments: argparse.Namespace) -> int:
    """Measure everything, print the table. A missed target is no error."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(f"{name} is not installed: pip install {name}")
    import torch

    torch.set_num_threads(1)
    about = describe_machine("torch", "transformers", "safetensors")
    about |= {"runs": arguments.runs, "shorter": arguments.shorter}
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    print("ms: wall-clock time, median run; MB: 10^6 bytes\n")
    rows = []
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for name in arguments.only or _PARTS:
            runs = min(arguments.runs, _MOST_RUNS.get(name, arguments.runs))
            rows += _rows(_PARTS[name], Path(scratch), arguments.shorter, runs)
    print(render_table(rows))
    if arguments.json is not None:
        save_json(arguments.json, about, rows)
    return 0


def _rows(place: str, scratch: Path, shorter: int, runs: int) -> list[Row]:
    module_name, _, name = place.partition(":")
    function: Callable[[Path, int, int], list[Row]]
    function = getattr(importlib.import_module(f"benchmarks.{module_name}"), name)
    return function(scratch, shorter, runs)
