"""Every test of `get_local` begins with nothing captured, and leaves nothing behind."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from visualizer import get_local
from visualizer._capture.eager_stance import EagerStance, eager_stance
from visualizer._capture.sites import sites
from visualizer._capture.taps import taps
from visualizer.errors import CaptureWarning

WriteModule = Callable[[str, str], ModuleType]
"""Writes a module's source under a name, and imports it (again)."""

Recorded = list[warnings.WarningMessage]


@pytest.fixture(autouse=True)
def nothing_captured() -> Iterator[None]:
    """Begin and end each test inactive, without patches, keys or warnings given before."""
    _reset()
    _forget_compiled_models()
    yield
    _reset()
    assert find_stance_leaks() == []


def _reset() -> None:
    """Take out every tap: of this test, and of functions of others that are not collected yet."""
    for tap in list(taps._taps.values()):
        tap.wishes = [wish for wish in tap.wishes if not wish.is_lasting]
    try:
        get_local.deactivate()
    finally:
        taps._taps.clear()
        sites._sites.clear()
        sites.clear()
        eager_stance._has_notified = False


def _forget_compiled_models() -> None:
    """Forget what other tests compiled, or the first notice would be that it runs eagerly."""
    compiler = sys.modules.get("torch._dynamo")
    if compiler is not None and any(compiler.eval_frame.cached_backends.values()):
        compiler.reset()


def find_stance_leaks() -> list[str]:
    """Say what is left of the compiler's stance, or of waiting for the compiler."""
    hooks = [hook for hook in sys.meta_path if type(hook).__module__ == EagerStance.__module__]
    leaks = [f"{hook!r} is in sys.meta_path" for hook in hooks]
    if eager_stance._waiting is not None:
        leaks.append("an import hook is remembered")
    if "torch._dynamo" in sys.modules:
        stance = sys.modules["torch._dynamo"].eval_frame._stance.stance
        leaks += [] if stance == "default" else [f"the compiler's stance is {stance!r}"]
    return leaks


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteModule]:
    """Give a function that writes and imports modules, which are gone after the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written: list[str] = []

    def write(name: str, source: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(source)
        written.append(name)
        importlib.invalidate_caches()
        if name in sys.modules:
            return importlib.reload(sys.modules[name])
        return importlib.import_module(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def captured_warnings() -> Iterator[Recorded]:
    """Record every CaptureWarning of the test, repeated ones too; other warnings pass."""
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CaptureWarning)
        yield recorded
