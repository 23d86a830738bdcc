"""Activation before and after definition and import, by real modules."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.capture.conftest import WriteModule
from visualizer import get_local
from visualizer.errors import UnsupportedPythonError

MODEL = """
from visualizer import get_local

class Attention:
    @get_local("attn")
    def forward(self, x):
        attn = [x]
        return x + 1

first_code = Attention.forward.__code__
"""


@pytest.mark.parametrize("is_before", [True, False])
def test_before_and_after_import(write_module: WriteModule, is_before: bool) -> None:
    if is_before:
        get_local.activate()
        model = write_module("some_model", MODEL)
    else:
        model = write_module("some_model", MODEL)
        assert list(get_local.cache) == []
        get_local.activate()
    assert dict(get_local.cache) == {"Attention.forward": []}
    assert model.Attention().forward(1) == 2
    assert get_local.cache["Attention.forward"] == [[1]]


def test_instances_from_before_are_captured(write_module: WriteModule) -> None:
    model = write_module("some_model", MODEL)
    instance, bound = model.Attention(), model.Attention().forward
    get_local.activate()
    instance.forward(1)
    bound(2)
    assert get_local.cache["Attention.forward"] == [[1], [2]]


def test_deactivate_gives_back_the_code_that_the_import_made(write_module: WriteModule) -> None:
    get_local.activate()
    model = write_module("some_model", MODEL)
    rewritten = model.Attention.forward.__code__
    assert model.first_code is rewritten
    assert any("visualizer" in name for name in rewritten.co_names)
    get_local.deactivate()
    restored = model.Attention.forward.__code__
    assert not any("visualizer" in name for name in restored.co_names)
    fresh: dict[str, Any] = {"__name__": "some_model"}
    exec(compile(MODEL, restored.co_filename, "exec", dont_inherit=True), fresh)
    assert restored == fresh["first_code"]


def test_order_of_the_notebook(write_module: WriteModule) -> None:
    get_local.activate()
    model = write_module("some_model", MODEL)
    get_local.clear()
    blocks = [model.Attention() for _ in range(3)]
    x = 0
    for block in blocks:
        x = block.forward(x)
    assert get_local.cache["Attention.forward"] == [[0], [1], [2]]


def test_several_functions_have_a_key_each_in_the_order_of_definition() -> None:
    @get_local("a")
    def second(x: int) -> int:
        a = x
        return a

    @get_local("a")
    def first(x: int) -> int:
        a = -x
        return a

    get_local.activate()
    first(1)
    second(2)
    assert [key.rpartition(".")[2] for key in get_local.cache] == ["second", "first"]
    assert [get_local.cache[name] for name in ("first", "second")] == [[-1], [2]]


def test_functions_that_are_gone_leave_no_key() -> None:
    @get_local("a")
    def attend(a: int) -> int:
        return a

    get_local.activate()
    assert len(get_local.cache) == 1
    del attend
    assert len(get_local.cache) == 0


def test_values_outlive_their_function() -> None:
    @get_local("a")
    def attend(a: int) -> int:
        return a

    get_local.activate()
    attend(1)
    del attend
    assert get_local.cache["attend"] == [1]
    get_local.clear()
    assert "attend" not in get_local.cache


LIGHT = """
import sys
from visualizer import get_local

@get_local("a")
def attend(x):
    a = [x, {"x": x}]
    return a

get_local.activate()
attend(1)
assert get_local.cache["attend"] == [[1, {"x": 1}]]
assert len(get_local.cache) == 1, repr(get_local.cache)
get_local.deactivate()
loaded = {name for name in ("torch", "numpy", "matplotlib", "IPython") if name in sys.modules}
sys.exit(f"loaded {loaded}" if loaded else 0)
"""


def test_capturing_imports_no_library() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_light_import_test_can_fail() -> None:
    code = "import sys; sys.modules['numpy'] = sys\n" + LIGHT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "loaded {'numpy'}" in done.stderr


def test_a_decorated_function_runs_on_a_python_that_the_engine_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.python_implementation", lambda: "SomethingPython")

    @get_local("attn")
    def attend(x: int) -> int:
        attn = x
        return attn

    assert attend(1) == 1
    with pytest.raises(UnsupportedPythonError, match="SomethingPython"):
        get_local.activate()
    assert not get_local.is_activate
    assert attend(2) == 2
