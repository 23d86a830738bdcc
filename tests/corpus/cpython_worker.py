"""Run one of CPython's test files, plain or instrumented, and write down how each test ended.

Started by `tests.corpus.cpython` in a process of its own: what was instrumented goes with it.
"""

from __future__ import annotations

import argparse
import importlib.util  # noqa: F401  frozen, so it must be loaded before the hook is there
import json
import ntpath  # noqa: F401  as above
import os
import runpy  # noqa: F401  as above
import signal
import sys
import unittest
import zipimport  # noqa: F401  as above
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.corpus.instrument_everything import Rewriter, drop, instrument_everything


class _Record(unittest.TestResult):
    """How each test ended, and what a failing one said."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, list[str]] = {}
        self.details: dict[str, str] = {}

    def _add(self, test: Any, outcome: str, error: Any = None) -> None:
        self.outcomes.setdefault(test.id(), []).append(outcome)
        if error is not None:
            self.details[test.id()] = self._exc_info_to_string(error, test)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._add(test, "ok")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._add(test, "failed", err)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._add(test, "error", err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._add(test, "skipped")

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._add(test, "expected failure")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._add(test, "unexpected success")

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:  # under the test's own name: a subtest's may hold an address
            self._add(test, "subtest failed", err)


def is_standard_library(module: str) -> bool:
    """Tell whether a module is the standard library's or one of its tests."""
    return module.partition(".")[0] in {*sys.stdlib_module_names, "test"}


def _meddle(*values: object) -> None:
    """A sink that does what no sink may: it changes what it is handed."""
    for value in values:
        if type(value) is list:
            value.clear()


def main(arguments: Sequence[str]) -> None:
    options = _parse(arguments)
    here = os.getpid()
    os.chdir(options.folder)
    del sys.path[0]  # the repository, which the tests must not see
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
    rewriter = Rewriter(options.cache)
    if options.mode != "plain":
        sabotaged = f"test.{options.file}" if options.mode == "sabotaged" else None
        instrument_everything(
            is_standard_library, rewriter, lambda name: _meddle if name == sabotaged else drop
        )
    record = _run(options.file, options.excluded)
    if os.getpid() == here:  # not a child that a test forked and lost
        _write(options.result, record, rewriter)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="such as test_generators")
    parser.add_argument("--mode", choices=["plain", "instrumented", "sabotaged"], required=True)
    parser.add_argument("--folder", type=Path, required=True, help="to run in")
    parser.add_argument("--result", type=Path, required=True, help="where to write the result")
    parser.add_argument("--cache", type=Path, help="for what was rewritten")
    parser.add_argument("--excluded", nargs="*", default=[], help="tests that are left out")
    return parser.parse_args(arguments)


def _run(file: str, excluded: Sequence[str]) -> _Record:
    from test import support

    support.use_resources = []  # no network, no long tests
    support.verbose = False
    record = _Record()
    suite = unittest.defaultTestLoader.loadTestsFromName(f"test.{file}")
    unittest.TestSuite(_wanted(suite, tuple(excluded))).run(record)
    return record


def _wanted(suite: unittest.TestSuite, excluded: tuple[str, ...]) -> Iterator[Any]:
    """Yield a suite's tests without the excluded ones, suites within suites kept as they are."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield type(test)(_wanted(test, excluded))
        elif not is_excluded(test.id(), excluded):
            yield test


def is_excluded(test: str, excluded: Sequence[str]) -> bool:
    """Tell whether a test is excluded; an entry may have * in place of what varies."""
    name = test.removeprefix("test.")
    return any(fnmatchcase(name, entry) for entry in excluded)


def _write(file: Path, record: _Record, rewriter: Rewriter) -> None:
    result = {
        "outcomes": {test: ", ".join(outcomes) for test, outcomes in record.outcomes.items()},
        "details": record.details,
        "functions": rewriter.functions,
        "locals": rewriter.locals,
        "failures": rewriter.failures,
    }
    file.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
