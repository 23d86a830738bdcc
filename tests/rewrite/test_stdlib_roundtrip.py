"""The whole standard library: nothing put in changes nothing, and a hand-over fits everywhere."""

from __future__ import annotations

import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType

import pytest

from visualizer._compat import facts
from visualizer.errors import RewriteCheckError
from visualizer.rewrite._decode import decode
from visualizer.rewrite._handover import Delivery, SinkKind
from visualizer.rewrite._layout import assemble, read_items
from visualizer.rewrite._locals import Local
from visualizer.rewrite._rewrite import rewrite_code

LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}
COMPARED = (
    "co_code",
    "co_exceptiontable",
    "co_linetable",
    "co_stacksize",
    "co_names",
    "co_consts",
    "co_varnames",
    "co_cellvars",
    "co_freevars",
    "co_flags",
)
HANDED_OVER = 8


@cache
def functions_of_the_standard_library() -> tuple[CodeType, ...]:
    """Compile every module and return the code objects that functions have."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in sorted(root.rglob("*.py"))
        if not LEFT_OUT.intersection(path.relative_to(root).parts)
    ]
    found: list[CodeType] = []
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        found += _functions_in(module)
    return tuple(found)


def _functions_in(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 0x02:  # CO_NEWLOCALS: not a class body
                yield constant
            yield from _functions_in(constant)


def _differences(one: CodeType, other: CodeType) -> list[str]:
    """Return what differs; with ==, and with what == does not look at."""
    differences = [name for name in COMPARED if getattr(one, name) != getattr(other, name)]
    if list(one.co_positions()) != list(other.co_positions()):
        differences.append("co_positions")
    if one != other:
        differences.append("==")
    return differences


def test_there_are_enough_functions() -> None:
    assert len(functions_of_the_standard_library()) > 8_000


def _round_trip(code: CodeType) -> CodeType:
    """Do what `rewrite_code` does, less its check."""
    original = decode(code, facts())
    return assemble(original, read_items(original), names=code.co_names)


def test_nothing_put_in_changes_nothing() -> None:
    different = {
        f"{code.co_filename}:{code.co_firstlineno} {code.co_qualname}": differences
        for code in functions_of_the_standard_library()
        if (differences := _differences(code, _round_trip(code)))
    }
    assert different == {}


def test_no_deliveries_change_nothing() -> None:
    for code in functions_of_the_standard_library()[::20]:
        assert _differences(code, rewrite_code(code, (), facts())) == []


def test_a_difference_would_be_seen() -> None:
    code = test_there_are_enough_functions.__code__
    assert _differences(code, code.replace()) == []
    assert "co_stacksize" in _differences(code, code.replace(co_stacksize=code.co_stacksize + 1))
    assert "co_positions" in _differences(code, code.replace(co_firstlineno=1))
    assert "co_code" in _differences(code, rewrite_code(code, [_delivery(code)], facts()))


def _delivery(code: CodeType) -> Delivery:
    """Hand over the first locals, those that only a comprehension has included."""
    cells = [name for name in code.co_cellvars if name not in code.co_varnames]
    fast = [
        Local(name, index, is_cell=name in code.co_cellvars)
        for index, name in enumerate(code.co_varnames)
    ]
    others = [
        Local(name, len(fast) + index, is_cell=True)
        for index, name in enumerate((*cells, *code.co_freevars))
    ]
    chosen = (fast[: HANDED_OVER // 2] + others + fast[HANDED_OVER // 2 :])[:HANDED_OVER]
    return Delivery(SinkKind.CALL, "__sink__", tuple(chosen))


@pytest.mark.parametrize("kind", SinkKind)
def test_a_hand_over_passes_the_check_of_the_engine(kind: SinkKind) -> None:
    """The check compares all that came from the original, one instruction after the other."""
    step = 7 if kind is SinkKind.CALL else 29  # all of them take minutes
    refused, changed = [], 0
    for code in functions_of_the_standard_library()[::step]:
        delivery = _delivery(code)
        if not delivery.variables:
            continue
        try:
            rewritten = rewrite_code(
                code, [Delivery(kind, delivery.key, delivery.variables)], facts()
            )
        except RewriteCheckError as error:
            refused.append(str(error))
        else:
            assert rewritten.co_consts is code.co_consts or rewritten.co_consts == code.co_consts
            changed += "__sink__" in rewritten.co_names
    assert refused == []
    assert changed > 200
