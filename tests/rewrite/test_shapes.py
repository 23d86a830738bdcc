"""Every one of the forty shapes: instrumented, it does what it did, and hands over its local."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.rewrite import (  # noqa: F401 - importing them registers the shapes
    shapes_classes,
    shapes_generators,
    shapes_leaving,
    shapes_names,
)
from tests.rewrite.shapes import SHAPES, Case, Outcome, Shape, observe
from visualizer.errors import UnknownLocalError
from visualizer.rewrite import UNBOUND, Sink, check_locals, instrument


def _each(shapes: list[Shape]) -> pytest.MarkDecorator:
    ids = [f"{shape.number:02}-{shape.make.__name__}" for shape in shapes]
    return pytest.mark.parametrize("sample", shapes, ids=ids)


each_shape = _each(SHAPES)
each_short_shape = _each([shape for shape in SHAPES if not shape.is_long])


def test_all_forty_are_there() -> None:
    assert sorted({shape.number for shape in SHAPES}) == list(range(1, 41))


def _outcomes(case: Case) -> tuple[list[Outcome], inspect.Signature]:
    return [observe(call.run) for call in case.calls], inspect.signature(case.function)


def _while_instrumented(
    case: Case, names: tuple[str, ...], sink: Sink, delivered: list[Any]
) -> list[list[Any]]:
    """Compare a case before, while and after it is instrumented; return what each call delivers."""
    function = case.function
    code = function.__code__
    before = _outcomes(case)
    captured = []
    with instrument(case.target, *names, sink=sink) as handle:
        assert handle.function is function
        assert function.__code__ is not code
        assert inspect.signature(function) == before[1]
        for call, expected in zip(case.calls, before[0], strict=True):
            delivered.clear()
            assert observe(call.run) == expected
            captured.append(list(delivered))
    assert function.__code__ is code
    assert _outcomes(case) == before
    return captured


@each_shape
def test_list_sink(sample: Shape) -> None:
    case = sample.case()
    values: list[Any] = []
    captured = _while_instrumented(case, (sample.name,), values, values)
    assert captured == [[v for v in call.captured if v is not UNBOUND] for call in case.calls]


@each_shape
def test_callback_sink(sample: Shape) -> None:
    case = sample.case()
    values: list[Any] = []
    captured = _while_instrumented(case, (sample.name,), values.append, values)
    assert captured == [list(call.captured) for call in case.calls]


def _all_locals(case: Case, first: str) -> tuple[str, ...]:
    """Return the name and the other locals that the function has (of 300 only a few)."""
    code = case.function.__code__
    names = [first]
    cells = (*code.co_cellvars, *code.co_freevars)
    fast = code.co_varnames if len(code.co_varnames) < 20 else code.co_varnames[:2]
    for name in dict.fromkeys((*cells, *fast)):
        try:
            check_locals(case.target, name)
        except UnknownLocalError:
            continue  # a comprehension's
        names.append(name)
    return tuple(names)


def _collector(values: list[Any]) -> Callable[..., None]:
    return lambda *delivered: values.append(delivered)


@each_short_shape
@pytest.mark.parametrize("kind", ["list", "callback"])
def test_many_locals_at_once(sample: Shape, kind: str) -> None:
    case = sample.case()
    names = _all_locals(case, sample.name)
    values: list[Any] = []
    sink = values if kind == "list" else _collector(values)
    captured = _while_instrumented(case, names, sink, values)
    for call, rows in zip(case.calls, captured, strict=True):
        assert all(len(row) == len(names) for row in rows)
        assert [row[0] for row in rows] == list(call.captured)
        for position, name in enumerate(names[1:], start=1):
            if name == sample.name:  # the same variable, asked for twice
                assert all(row[position] is row[0] for row in rows)


@each_short_shape
def test_several_instrumentations_at_once(sample: Shape) -> None:
    """A list, a callback and a tuple of values side by side."""
    case = sample.case()
    one: list[Any] = []
    two: list[Any] = []
    three: list[Any] = []
    code = case.function.__code__
    before = _outcomes(case)
    with ExitStack() as handles:
        handles.enter_context(instrument(case.target, sample.name, sink=one))
        handles.enter_context(instrument(case.target, sample.name, sink=two.append))
        handles.enter_context(instrument(case.target, sample.name, sample.name, sink=three))
        assert _outcomes(case) == before
    expected = [value for call in case.calls for value in call.captured]
    assert two == expected
    assert one == [value for value in expected if value is not UNBOUND]
    assert three == [(value, value) for value in expected]
    assert case.function.__code__ is code
    assert _outcomes(case) == before
