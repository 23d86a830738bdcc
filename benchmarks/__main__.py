"""The command line of the benchmarks: `python -m benchmarks NAME`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

BENCHMARKS: Final = {
    "pointing": ("benchmarks.pointing", "whether attention points at what the model names"),
    "overhead": ("benchmarks.overhead", "what taking a local adds to a call, and to a ViT-S"),
    "attention": ("benchmarks.attention", "what capturing attention costs, beside its peers"),
    "store": ("benchmarks.store", "what saving a capture and reading it costs, beside its peers"),
}
"""Each benchmark's module, with `add_arguments(parser)` and `run(arguments) -> exit status`."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure what visualizer costs, and whether what it shows is true.",
    )
    commands = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, (module_name, summary) in BENCHMARKS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if given[:1] == [name]:  # the others may need what is not installed
            module = importlib.import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    parsed = parser.parse_args(given)
    status: int = parsed.run(parsed)
    return status


if __name__ == "__main__":
    sys.exit(main())
