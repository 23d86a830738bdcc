"""Functions made again: cells, reloads, closures."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable
from typing import Any

import pytest

from tests.capture.conftest import WriteModule
from visualizer import get_local
from visualizer._capture.sites import sites
from visualizer._capture.taps import taps

CELL = """
from visualizer import get_local

class Attention:
    @get_local({name!r})
    def forward(self, x):
        attn = [x, {version}]
        q = x
        return x
"""


def run_cell(namespace: dict[str, Any], version: int, name: str = "attn") -> Any:
    """Run the source as a notebook does: again in the same namespace."""
    exec(compile(CELL.format(name=name, version=version), "<cell>", "exec"), namespace)
    return namespace["Attention"]


@pytest.fixture
def namespace() -> dict[str, Any]:
    return {"__name__": "notebook"}


@pytest.mark.parametrize("is_active", [True, False])
def test_a_cell_run_again_starts_a_new_list(namespace: dict[str, Any], is_active: bool) -> None:
    if is_active:
        get_local.activate()
    old = run_cell(namespace, 1)
    get_local.activate()
    old().forward(1)
    if not is_active:
        get_local.deactivate()
    new = run_cell(namespace, 2)
    get_local.activate()
    assert dict(get_local.cache) == {"Attention.forward": []}
    new().forward(2)
    assert dict(get_local.cache) == {"Attention.forward": [[2, 2]]}


def test_the_old_function_has_its_code_again_and_delivers_nothing(
    namespace: dict[str, Any],
) -> None:
    old = run_cell(namespace, 1)
    code = old.forward.__code__
    get_local.activate()
    assert old.forward.__code__ is not code
    run_cell(namespace, 2)
    assert old.forward.__code__ is code
    old().forward(1)
    assert get_local.cache["Attention.forward"] == []


def test_the_same_cell_with_another_variable(namespace: dict[str, Any]) -> None:
    get_local.activate()
    old = run_cell(namespace, 1)
    old().forward(1)
    new = run_cell(namespace, 1, name="q")
    old().forward(2)
    new().forward(3)
    assert dict(get_local.cache) == {"Attention.forward": [3]}
    with pytest.raises(KeyError):
        get_local.cache["Attention.forward.attn"]


def test_a_list_taken_before_keeps_its_values(namespace: dict[str, Any]) -> None:
    get_local.activate()
    run_cell(namespace, 1)().forward(1)
    held = get_local.cache["Attention.forward"]
    run_cell(namespace, 2)().forward(2)
    assert held == [[1, 1]]


def test_reload_starts_a_new_list(write_module: WriteModule) -> None:
    get_local.activate()
    module = write_module("some_model", CELL.format(name="attn", version=1))
    module.Attention().forward(1)
    module = write_module("some_model", CELL.format(name="attn", version=2))
    assert dict(get_local.cache) == {"Attention.forward": []}
    module.Attention().forward(1)
    assert dict(get_local.cache) == {"Attention.forward": [[1, 2]]}


def test_two_functions_of_one_name_in_one_body_both_stay() -> None:
    get_local.activate()

    @get_local("x")
    def attend(x: int) -> int:
        return x

    first = attend

    @get_local("x")
    def attend(x: int) -> int:  # type: ignore[no-redef]
        return -x

    first(1)
    attend(2)
    assert sorted(get_local.cache.values()) == [[1], [2]]
    lines = sorted(int(key.rpartition("@")[2]) for key in get_local.cache)
    assert lines[0] < lines[1]


def make_closure(bias: int) -> Callable[[int], int]:
    @get_local("shifted")
    def shift(x: int) -> int:
        shifted = x + bias
        return shifted

    return shift


def test_closures_of_one_factory_share_a_list() -> None:
    get_local.activate()
    functions = [make_closure(bias) for bias in range(50)]
    assert [function(1000) for function in functions] == [1000 + bias for bias in range(50)]
    assert dict(get_local.cache) == {
        "make_closure.<locals>.shift": [1000 + bias for bias in range(50)]
    }


def count_objects() -> int:
    gc.collect()
    return sum(type(thing) in (types.FunctionType, types.CodeType) for thing in gc.get_objects())


def test_thousands_of_closures_leave_nothing_behind() -> None:
    get_local.activate()
    kept = make_closure(0)
    make_closure(1)(1)
    before = count_objects(), len(taps._taps), len(sites._sites), set(globals())
    for bias in range(2000):
        make_closure(bias)(1)
    after = count_objects(), len(taps._taps), len(sites._sites), set(globals())
    assert after == before
    assert len(get_local.cache["shift"]) == 2001
    assert kept(1) == 1


def test_closures_follow_activate_and_deactivate() -> None:
    functions = [make_closure(bias) for bias in range(3)]
    codes = {function.__code__ for function in functions}
    assert len(codes) == 1
    get_local.activate()
    assert codes.isdisjoint(function.__code__ for function in functions)
    get_local.deactivate()
    assert {function.__code__ for function in functions} == codes
    functions[0](1)
    assert get_local.cache.get("shift", []) == []
