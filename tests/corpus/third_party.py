"""Run torch, numpy, transformers and matplotlib plain and instrumented: equal to the last bit.

A seeded script builds models with random weights, runs and trains them and draws a figure. It
runs in two processes: as it is, and with every Python function of those packages rewritten.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.corpus.processes import NOT_HERE, run_worker
from tests.corpus.third_party_worker import PACKAGES

__all__ = ["Run", "compare", "main", "missing_packages", "run_script"]

_MOST_SECONDS = 1800  # rewriting some fifty thousand functions takes its time


@dataclass(frozen=True, slots=True)
class Run:
    """What the script computed in one process.

    Attributes:
        ending: "ended", or what became of the process instead.
        digests: A digest or a number for each thing computed, by what it is.
        functions: How many functions were rewritten.
        locals: How many of their locals were handed over.
        failures: Functions that the engine's own check refused.
    """

    ending: str
    digests: Mapping[str, str] = field(default_factory=dict)
    functions: int = 0
    locals: int = 0
    failures: Sequence[str] = ()


def missing_packages() -> list[str]:
    """Return which of the packages are not installed."""
    return sorted(name for name in PACKAGES if importlib.util.find_spec(name) is None)


def run_script(mode: str, cache: Path) -> Run:
    """Run the script in a process of its own.

    Args:
        mode: "plain", "instrumented" or "sabotaged".
        cache: Folder for rewritten code.
    """
    with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
        result = Path(folder, "result.json")
        arguments = ["--mode", mode, "--result", str(result), "--cache", str(cache)]
        ending = run_worker("third_party_worker", arguments, Path(folder, "output"), _MOST_SECONDS)
        if not result.exists():
            return Run(f"{ending}, no result")
        return Run(ending, **json.loads(result.read_text(encoding="utf-8")))


def compare(plain: Run, other: Run) -> Iterator[str]:
    """Yield each thing that came out differently, in words."""
    if plain.ending != other.ending:
        yield f"the process: {plain.ending} → {other.ending}"
    for failure in other.failures:
        yield f"refused by the engine's check: {failure}"
    for what in {**plain.digests, **other.digests}:
        before, after = plain.digests.get(what, "nothing"), other.digests.get(what, "nothing")
        if before != after:
            yield f"{what}: {before} → {after}"


def main(arguments: Sequence[str]) -> int:
    """Run the script twice and print what came out; return an exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus third_party", description=__doc__)
    parser.add_argument("--cache", type=Path, help="folder that keeps rewritten code for later")
    options = parser.parse_args(arguments)
    if missing := missing_packages():
        print(f"not installed: {', '.join(missing)}; nothing to run.")
        return NOT_HERE
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="corpus-cache-") as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        plain, other = run_script("plain", cache), run_script("instrumented", cache)
    return _conclude(plain, other, time.monotonic() - began)


def _conclude(plain: Run, other: Run, seconds: float) -> int:
    for what, digest in plain.digests.items():
        print(f"{what:<32} {digest[:16]:<16} {other.digests.get(what, 'nothing')[:16]}")
    differences = list(compare(plain, other))
    for difference in differences:
        print(f"≠ {difference}")
    print(
        f"Python {sys.version.split()[0]}: {len(plain.digests)} results, {other.functions} "
        f"functions instrumented with {other.locals} locals, {len(differences)} differences, "
        f"{seconds:.0f} s"
    )
    return 1 if differences or not plain.digests else 0
