"""IPython: `%autoreload 2`, and cells that are run again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from tests.capture.conftest import Recorded
from visualizer import get_local

shells: Any = pytest.importorskip(
    "IPython.core.interactiveshell", reason="IPython is not installed"
)

MODEL = """
from visualizer import get_local

class Attention:
    @get_local("attn")
    def forward(self, x):
        {before}attn = [x, {version}]
        return x + {version}

    def plain(self, x):
        return x + {version}
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    main = sys.modules["__main__"]
    shell = shells.InteractiveShell()
    yield shell
    shell.history_manager.end_session()
    sys.modules["__main__"] = main
    for name in set(sys.modules) - before:
        if name.startswith("watched_"):
            del sys.modules[name]


def run(shell: Any, cell: str) -> Any:
    outcome = shell.run_cell(cell, store_history=False)
    outcome.raise_error()
    return outcome.result


class Edited:
    """A module on disk that is edited: every version is newer than the one before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.time = 1_000_000_000

    def write(self, version: int, before: str = "") -> None:
        self.path.write_text(MODEL.format(version=version, before=before))
        self.time += 10
        os.utime(self.path, (self.time, self.time))


@pytest.fixture
def edited(tmp_path: Path, shell: Any) -> Edited:
    """The module, watched by autoreload and imported in the shell."""
    source = Edited(tmp_path / "watched_model.py")
    source.write(1)
    run(shell, "%load_ext autoreload")
    run(shell, "%autoreload 2")
    run(shell, "import watched_model; from watched_model import Attention; old = Attention()")
    return source


def rewritten_functions(module: ModuleType, *more: Any) -> list[str]:
    """Name the functions that have rewritten code."""
    functions = [*vars(module.Attention).values(), *more]
    return [
        function.__qualname__
        for function in functions
        if isinstance(function, FunctionType)
        and any("__visualizer_sink" in name for name in function.__code__.co_names)
    ]


def test_a_module_edited_while_active_is_captured(shell: Any, edited: Edited) -> None:
    get_local.activate()
    assert run(shell, "Attention().forward(1)") == 2
    edited.write(10)
    assert run(shell, "Attention().forward(1)") == 11
    assert run(shell, "old.forward(2)") == 12
    assert list(get_local.cache) == ["Attention.forward"]
    values = get_local.cache["Attention.forward"]
    assert values[-2:] == [[1, 10], [2, 10]]


def test_each_call_is_captured_once(shell: Any, edited: Edited) -> None:
    get_local.activate()
    for version in (2, 3, 4):
        edited.write(version)
        get_local.clear()
        assert run(shell, "old.forward(5)") == 5 + version
        assert get_local.cache["Attention.forward"] == [[5, version]]


def test_deactivate_restores_the_code_everywhere(
    shell: Any, edited: Edited, captured_warnings: Recorded
) -> None:
    module = sys.modules["watched_model"]
    first = module.Attention.forward
    get_local.activate()
    run(shell, "old.forward(1)")
    assert "Attention.forward" in rewritten_functions(module)
    for version in (2, 3):
        edited.write(version)
        run(shell, "old.forward(1)")
    get_local.deactivate()
    assert rewritten_functions(module, first) == []
    assert run(shell, "old.forward(1)") == 4
    assert run(shell, "old.plain(1)") == 4


def test_activating_again_captures_the_edited_code(shell: Any, edited: Edited) -> None:
    get_local.activate()
    run(shell, "old.forward(1)")
    edited.write(2)
    run(shell, "old.forward(1)")
    get_local.deactivate()
    get_local.clear()
    get_local.activate()
    assert run(shell, "old.forward(1)") == 3
    assert run(shell, "Attention().forward(2)") == 4
    assert get_local.cache["Attention.forward"] == [[1, 2], [2, 2]]


def test_edited_while_inactive(shell: Any, edited: Edited) -> None:
    edited.write(2)
    assert run(shell, "old.forward(1)") == 3
    get_local.activate()
    assert run(shell, "old.forward(1)") == 3
    assert get_local.cache["Attention.forward"] == [[1, 2]]
    get_local.deactivate()
    assert rewritten_functions(sys.modules["watched_model"]) == []


CELL = """
from visualizer import get_local

class Attention:
    @get_local({name!r})
    def forward(self, x):
        attn = [x, {version}]
        q = x
        return x
"""


def test_a_cell_run_again_starts_a_new_list(shell: Any) -> None:
    get_local.activate()
    for version in (1, 2):
        run(shell, CELL.format(name="attn", version=version))
        assert get_local.cache["Attention.forward"] == []
        run(shell, "Attention().forward(1)")
        assert dict(get_local.cache) == {"Attention.forward": [[1, version]]}


def test_a_cell_with_another_variable_replaces_the_first(shell: Any) -> None:
    get_local.activate()
    run(shell, CELL.format(name="attn", version=1))
    run(shell, "Attention().forward(1)")
    run(shell, CELL.format(name="q", version=1))
    run(shell, "Attention().forward(2)")
    assert dict(get_local.cache) == {"Attention.forward": [2]}


def test_the_cache_at_the_end_of_a_cell_explains_itself(shell: Any) -> None:
    shown = repr(run(shell, "from visualizer import get_local\nget_local.cache"))
    assert shown.startswith("<get_local.cache, empty: get_local is not active; ")
