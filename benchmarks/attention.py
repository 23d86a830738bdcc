"""What capturing attention costs, and what it saves, beside its peers in the same run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks._machine import describe_machine, positive
from benchmarks._report import Row, render_table, save_json

__all__ = ["add_arguments", "run"]


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the benchmark.

    Attributes:
        place: `module:function`, which is given tokens and runs and returns rows.
        tokens: How long the text is.
        runs: How many runs at most.
    """

    place: str
    tokens: int
    runs: int = 1000

    def rows(self, shorter: int, runs: int) -> list[Row]:
        module_name, _, name = self.place.partition(":")
        function: Callable[[int, int], list[Row]]
        function = getattr(importlib.import_module(f"benchmarks.{module_name}"), name)
        return function(max(16, self.tokens // shorter), min(runs, self.runs))


_PARTS: Final = {
    "bert": _Part("_attention_forward:bert_rows", 32),
    "forward": _Part("_attention_forward:llama_rows", 4096),
    "held": _Part("_attention_held:held_rows", 4096),
    "row": _Part("_attention_row:row_rows", 32768),
    "generation": _Part("_attention_generation:generation_rows", 512),
    "entropy": _Part("_attention_entropy:entropy_rows", 16384, runs=5),
    "compiled": _Part("_attention_compiled:compiled_rows", 1024, runs=7),
    "relevance": _Part("_attention_relevance:relevance_rows", 4096, runs=5),
    # the last, since torchlens leaves torch's functions wrapped
    "torchlens": _Part("_attention_torchlens:torchlens_rows", 2048, runs=5),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", choices=_PARTS, action="append", help="this part; may be given again"
    )
    parser.add_argument("--runs", type=positive, default=11, help="default: %(default)s")
    parser.add_argument(
        "--shorter", type=positive, default=1, metavar="N", help="divide all lengths, to try it out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")


def run(arguments: argparse.Namespace) -> int:
    """Measure everything, print the table. A missed target is no error."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(f"{name} is not installed: pip install {name}")
    import torch

    torch.set_num_threads(1)
    about = describe_machine("torch", "transformers", "torchlens")
    about |= {"runs": arguments.runs, "shorter": arguments.shorter}
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    print("ms: processor time on one thread, median run; MB: 10^6 bytes\n")
    rows = []
    with torch.no_grad():
        for name in arguments.only or _PARTS:
            rows += _PARTS[name].rows(arguments.shorter, arguments.runs)
    print(render_table(rows))
    if arguments.json is not None:
        save_json(arguments.json, about, rows)
    return 0
