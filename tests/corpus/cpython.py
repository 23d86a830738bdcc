"""Run CPython's own tests plain and with everything instrumented: each must end the same way.

Which test files, and what is left out and why, stands in `cpython_tests.txt`. Every file runs in
two processes of its own: as it is, and with every function of the standard library and of the
tests rewritten. What differs then is the engine's doing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.corpus.processes import NOT_HERE, run_worker

__all__ = [
    "LIST",
    "Comparison",
    "Run",
    "Selection",
    "compare",
    "has_test_package",
    "main",
    "read_selection",
    "run_file",
]

LIST = Path(__file__).with_name("cpython_tests.txt")
_MOST_SECONDS = 420


@dataclass(frozen=True, slots=True)
class Selection:
    """What to run.

    Attributes:
        files: Test files, such as `test_generators`.
        fast: Those of them that are part of every test run.
        excluded: What is left out, files or single tests, and why.
    """

    files: tuple[str, ...]
    fast: frozenset[str]
    excluded: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Run:
    """How one test file went in one process.

    Attributes:
        ending: "ended", or what became of the process instead.
        outcomes: How each test ended, by its id.
        details: What the failing ones said.
        functions: How many functions were rewritten.
        locals: How many of their locals were handed over.
        failures: Functions that the engine's own check refused.
        seconds: Time taken.
    """

    ending: str
    outcomes: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    functions: int = 0
    locals: int = 0
    failures: Sequence[str] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One test file, run twice."""

    file: str
    plain: Run
    other: Run
    differences: tuple[str, ...]


def read_selection(text: str) -> Selection:
    """Read the list of test files; its head says how it is written.

    Raises:
        ValueError: An exclusion gives no reason.
    """
    files: dict[str, bool] = {}
    excluded: dict[str, str] = {}
    for line in text.splitlines():
        entry, _, comment = (part.strip() for part in line.partition("#"))
        if entry.startswith("-"):
            if not comment:
                raise ValueError(f"{line!r} leaves something out; say why, behind a #.")
            excluded[entry.removeprefix("-").strip()] = comment
        elif entry:
            name, _, mark = entry.partition(" ")
            files[name] = mark.strip() == "fast"
    fast = frozenset(name for name, is_fast in files.items() if is_fast)
    return Selection(tuple(files), fast, excluded)


def has_test_package() -> bool:
    """Tell whether this Python came with its tests."""
    # The package itself is everywhere; distributions strip what is in it.
    return importlib.util.find_spec("test") is not None and (
        importlib.util.find_spec("test.test_generators") is not None
    )


def run_file(file: str, mode: str, selection: Selection, cache: Path) -> Run:
    """Run one test file in a process of its own.

    Args:
        file: Such as `test_generators`.
        mode: "plain", "instrumented" or "sabotaged".
        selection: Says which tests are left out.
        cache: Folder for rewritten code.
    """
    with tempfile.TemporaryDirectory(prefix="corpus-", ignore_cleanup_errors=True) as folder:
        result = Path(folder, "result.json")
        work = Path(folder, "work")
        work.mkdir()
        excluded = [entry for entry in selection.excluded if "." in entry]
        arguments = [file, "--mode", mode, "--folder", str(work), "--result", str(result)]
        arguments += ["--cache", str(cache), "--excluded", *excluded]
        began = time.monotonic()
        ending = run_worker("cpython_worker", arguments, Path(folder, "output"), _MOST_SECONDS)
        seconds = time.monotonic() - began
        if not result.exists():
            return Run(f"{ending}, no result", seconds=seconds)
        return Run(ending, seconds=seconds, **json.loads(result.read_text(encoding="utf-8")))


def compare(plain: Run, other: Run) -> Iterator[str]:
    """Yield each thing that went differently, in words."""
    if plain.ending != other.ending:
        yield f"the process: {plain.ending} → {other.ending}"
    for failure in other.failures:
        yield f"refused by the engine's check: {failure}"
    for test in sorted({*plain.outcomes, *other.outcomes}):
        before, after = plain.outcomes.get(test, "not run"), other.outcomes.get(test, "not run")
        if before != after:
            detail = other.details.get(test, plain.details.get(test, ""))
            yield f"{test}: {before} → {after}\n{_indent(detail)}".rstrip()


def _indent(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines()[-12:])


def main(arguments: Sequence[str]) -> int:
    """Run the corpus and print a table; return an exit status."""
    options = _parse(arguments)
    if not has_test_package():
        print(f"Python {sys.version.split()[0]} came without its own tests: nothing to run.")
        return NOT_HERE
    selection = read_selection(LIST.read_text(encoding="utf-8"))
    files = options.file or [
        file for file in selection.files if not options.fast or file in selection.fast
    ]
    began = time.monotonic()
    comparisons = list(_compare_all(files, selection, options))
    return _conclude(comparisons, time.monotonic() - began)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus cpython", description=__doc__)
    parser.add_argument("--fast", action="store_true", help="the files marked as fast only")
    parser.add_argument("--jobs", type=int, default=2, help="files at a time")
    parser.add_argument("--file", nargs="+", metavar="test_x", help="these files only")
    parser.add_argument("--cache", type=Path, help="folder that keeps rewritten code for later")
    parser.add_argument(
        "--against",
        choices=["instrumented", "plain", "sabotaged"],
        default="instrumented",
        help="what to compare a plain run with: another one shows which tests are unsteady, "
        "a sabotaged one that differences are found",
    )
    return parser.parse_args(arguments)


def _compare_all(
    files: Sequence[str], selection: Selection, options: argparse.Namespace
) -> Iterator[Comparison]:
    """Run the files, some at a time, and print a line for each as it is done."""
    with tempfile.TemporaryDirectory(prefix="corpus-cache-") as folder:
        cache: Path = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)

        def compare_file(file: str) -> Comparison:
            plain = run_file(file, "plain", selection, cache)
            other = run_file(file, options.against, selection, cache)
            return Comparison(file, plain, other, tuple(compare(plain, other)))

        print(f"{'file':<28} {'tests':>6} {'functions':>10} {'seconds':>8}")
        with ThreadPoolExecutor(options.jobs) as pool:
            for comparison in pool.map(compare_file, files):
                print("\n".join(_report(comparison)), flush=True)
                yield comparison


def _report(comparison: Comparison) -> Iterator[str]:
    other = comparison.other
    seconds = comparison.plain.seconds + other.seconds
    line = f"{comparison.file:<28} {len(other.outcomes):>6} {other.functions:>10} {seconds:>8.1f}"
    yield f"{line}  {len(comparison.differences) or ''}".rstrip()
    for difference in comparison.differences:
        yield f"  ≠ {difference}"


def _conclude(comparisons: Sequence[Comparison], seconds: float) -> int:
    tests = sum(len(comparison.other.outcomes) for comparison in comparisons)
    most = max((comparison.other.functions for comparison in comparisons), default=0)
    every = sum(comparison.other.functions for comparison in comparisons)
    differences = sum(len(comparison.differences) for comparison in comparisons)
    print(
        f"Python {sys.version.split()[0]}: {len(comparisons)} files, {tests} tests, "
        f"{every} functions instrumented (at most {most} in a process), "
        f"{differences} differences, {seconds:.0f} s"
    )
    return 1 if differences or not tests else 0
