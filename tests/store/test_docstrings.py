"""The examples in the docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import visualizer.store

MODULES = [
    f"visualizer.store.{found.name}" for found in pkgutil.iter_modules(visualizer.store.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    for test in doctest.DocTestFinder().find(importlib.import_module(name)):
        printed: list[str] = []
        results = doctest.DocTestRunner().run(test, out=printed.append)
        assert not results.failed, "".join(printed)


def test_what_is_exported_is_there_and_documented() -> None:
    for name in visualizer.store.__all__:
        assert getattr(visualizer.store, name).__doc__, name
