"""The examples in the docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")

import visualizer.analysis  # noqa: E402

MODULES = [
    f"visualizer.analysis.{found.name}"
    for found in pkgutil.iter_modules(visualizer.analysis.__path__)
]


def examples(name: str) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder().find(importlib.import_module(name))
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    if name.endswith(".flow"):
        pytest.importorskip("scipy", reason="scipy is not installed")
    for test in examples(name):
        printed: list[str] = []
        results = doctest.DocTestRunner().run(test, out=printed.append)
        assert not results.failed, "".join(printed)


def test_every_function_that_returns_an_array_has_one() -> None:
    having = {test.name.rpartition(".")[2] for name in MODULES for test in examples(name)}
    functions = set(visualizer.analysis.__all__) - {"AttentionFlow", "HeadStatistics"}
    assert having >= functions - {"specialization"}


def test_what_is_exported_is_there_and_documented() -> None:
    for name in visualizer.analysis.__all__:
        assert getattr(visualizer.analysis, name).__doc__
