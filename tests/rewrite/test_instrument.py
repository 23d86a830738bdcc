"""Putting instrumentations in and taking them out again."""

from __future__ import annotations

import copy
import dis
import gc
import inspect
import itertools
import marshal
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from visualizer.errors import CodeReplacedError
from visualizer.rewrite import UNBOUND, Instrumentation, check_locals, instrument, restore


def scale(x: Any, *, by: int = 2) -> Any:
    """Multiply."""
    factor = x * by
    return factor + 1


alias = scale
ORIGINAL = scale.__code__


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_removed_in_any_order(order: tuple[int, ...]) -> None:
    """Each delivers until it is removed, and the last one puts the original back."""
    sinks: list[list[Any]] = [[], [], []]
    handles = [
        instrument(scale, "factor", sink=sinks[0]),
        instrument(scale, "x", "factor", sink=lambda *both: sinks[1].append(both)),
        instrument(scale, "x", "by", sink=sinks[2]),
    ]
    expected: list[list[Any]] = [[], [], []]
    for number, position in enumerate((None, *order)):
        if position is not None:
            handles[position].remove()
        assert scale(number) == number * 2 + 1
        values = number * 2, (number, number * 2), (number, 2)
        for sink, value, handle in zip(expected, values, handles, strict=True):
            if handle.is_installed:
                sink.append(value)
    assert [len(sink) for sink in expected] == [order.index(place) + 1 for place in range(3)]
    assert sinks == expected
    assert scale.__code__ is ORIGINAL


def test_added_between_removals() -> None:
    first, second, third = [], [], []
    one = instrument(scale, "x", sink=first)
    two = instrument(scale, "x", sink=second)
    one.remove()
    three = instrument(scale, "x", sink=third)
    two.remove()
    scale(5)
    three.remove()
    assert (first, second, third) == ([], [], [5])
    assert scale.__code__ is ORIGINAL


def test_same_names_twice() -> None:
    one: list[Any] = []
    two: list[Any] = []
    with instrument(scale, "x", "x", sink=one), instrument(scale, "x", sink=two):
        with instrument(scale, "x", sink=two):
            scale(3)
    assert one == [(3, 3)]
    assert two == [3, 3]


def test_one_sink_for_two_functions() -> None:
    def other(x: int) -> int:
        return x

    values: list[Any] = []
    with instrument(scale, "x", sink=values), instrument(other, "x", sink=values):
        scale(1)
        other(2)
    assert values == [1, 2]


def test_function_keeps_its_identity() -> None:
    number = id(scale)
    facts = (scale.__name__, scale.__qualname__, scale.__doc__, scale.__defaults__)
    kwdefaults, source = scale.__kwdefaults__, inspect.getsource(scale)
    values: list[Any] = []
    with instrument(scale, "factor", sink=values):
        assert scale is alias
        assert id(scale) == number
        assert facts == (scale.__name__, scale.__qualname__, scale.__doc__, scale.__defaults__)
        assert scale.__kwdefaults__ is kwdefaults
        assert alias(1, by=3) == 4
        assert pickle.loads(pickle.dumps(scale)) is scale
        assert copy.deepcopy(scale) is scale
        assert inspect.getsource(scale) == source
        assert scale.__code__.co_consts is ORIGINAL.co_consts or (
            scale.__code__.co_consts == ORIGINAL.co_consts
        )
    assert values == [3]


def test_code_stays_readable() -> None:
    """Tools that read code objects go on working, and no line is added or lost."""
    with instrument(scale, "factor", "x", sink=print) as handle:
        code = scale.__code__
        assert {line for *_, line in code.co_lines()} == {line for *_, line in ORIGINAL.co_lines()}
        assert set(code.co_positions()) == set(ORIGINAL.co_positions())
        names = [instruction.opname for instruction in dis.get_instructions(scale)]
        assert len(names) > len(list(dis.get_instructions(ORIGINAL)))
        assert inspect.getsourcelines(scale)[1] == ORIGINAL.co_firstlineno
        changed = marshal.loads(marshal.dumps(code))
        assert changed == code
        assert hash(changed) == hash(code)
        handle.remove()


def test_handle() -> None:
    values: list[Any] = []
    handle = instrument(scale, "x", "factor", sink=values)
    assert handle.names == ("x", "factor")
    assert handle.function is scale
    assert handle.is_installed
    assert repr(handle) == "<Instrumentation of x, factor in scale, installed>"
    handle.remove()
    assert not handle.is_installed
    assert repr(handle) == "<Instrumentation of x, factor in scale, not installed>"
    handle.remove()
    assert scale.__code__ is ORIGINAL


def test_removing_twice_does_not_remove_another() -> None:
    values: list[Any] = []
    one = instrument(scale, "x", sink=[])
    one.remove()
    with instrument(scale, "x", sink=values):
        one.remove()
        scale(1)
    assert values == [1]


def test_context_manager_removes_when_the_block_raises() -> None:
    values: list[Any] = []
    with pytest.raises(KeyError), instrument(scale, "x", sink=values):
        scale(1)
        raise KeyError
    assert scale.__code__ is ORIGINAL
    assert values == [1]


def test_handle_of_a_function_that_is_gone() -> None:
    def make() -> Instrumentation:
        def short_lived(x: int) -> int:
            return x

        return instrument(short_lived, "x", sink=[])

    handle = make()
    gc.collect()
    assert handle.function is None
    assert not handle.is_installed
    assert repr(handle) == "<Instrumentation of x in a function that is gone, not installed>"
    handle.remove()


def replacement(x: Any, *, by: int = 2) -> Any:
    changed = [x, by]
    return changed


def test_code_replaced_by_somebody_else() -> None:
    def f(x: int) -> int:
        return x

    values: list[Any] = []
    handle = instrument(f, "x", sink=values)
    f.__code__ = replacement.__code__
    assert not handle.is_installed
    with pytest.raises(CodeReplacedError) as caught:
        handle.remove()
    assert str(caught.value) == (
        "the code of test_code_replaced_by_somebody_else.<locals>.f() was replaced by somebody "
        f"else after it was instrumented (now {__file__}:{replacement.__code__.co_firstlineno}); "
        "it stays as it is, and x is no longer captured."
    )
    assert f.__code__ is replacement.__code__
    assert f(1, by=3) == [1, 3]
    handle.remove()  # it has said so once

    with instrument(f, "changed", sink=values):
        assert f(1, by=3) == [1, 3]
    assert values == [[1, 3]]
    assert f.__code__ is replacement.__code__


def test_code_replaced_then_instrumented_then_removed_in_any_order() -> None:
    for newer_first in (True, False):

        def f(x: int) -> int:
            return x

        old = instrument(f, "x", sink=[])
        f.__code__ = replacement.__code__
        values: list[Any] = []
        new = instrument(f, "changed", sink=values)
        if newer_first:
            new.remove()
        with pytest.raises(CodeReplacedError):
            old.remove()
        if not newer_first:
            f(1, by=2)
            assert values == [[1, 2]]
            new.remove()
        assert f.__code__ is replacement.__code__


def test_restore_after_code_was_copied() -> None:
    """As tools that reload modules do: they copy the code of one function into another."""

    def make() -> Callable[[int], int]:
        def f(x: int) -> int:
            y = x + 1
            return y

        return f

    ours, theirs = make(), make()
    values: list[Any] = []
    original = ours.__code__
    with instrument(ours, "y", sink=values):
        theirs.__code__ = ours.__code__
        assert restore(ours) is False
        assert restore(theirs) is True
        assert theirs.__code__ is original
        assert restore(theirs) is False
        assert (ours(1), theirs(10)) == (2, 11)
    assert values == [2]
    assert restore(ours) is False


def test_check_locals_while_instrumented() -> None:
    with instrument(scale, "factor", sink=[]):
        code = scale.__code__
        assert check_locals(scale, "factor", "x") is scale
        assert scale.__code__ is code


def countdown(n: int) -> Iterator[int]:
    while n:
        yield n
        n -= 1
    return


def test_suspended_generator_outlives_remove() -> None:
    """Its frame keeps the rewritten code; that finds no sink, and finishes as if nothing was."""
    for sink in ([], print):
        with instrument(countdown, "n", sink=sink), instrument(countdown, "n", "n", sink=[]):
            running = countdown(3)
            assert next(running) == 3
        assert list(running) == [2, 1]
    assert sink is print  # both were tried


def test_suspended_generator_outlives_one_of_two() -> None:
    one: list[Any] = []
    two: list[Any] = []
    with instrument(countdown, "n", sink=one):
        with instrument(countdown, "n", sink=two.append):
            running = countdown(2)
            next(running)
        assert list(running) == [1]
    assert (one, two) == ([0], [])


def test_generator_started_before_delivers_nothing() -> None:
    values: list[Any] = []
    running = countdown(2)
    next(running)
    with instrument(countdown, "n", sink=values):
        assert list(running) == [1]
        assert list(countdown(1)) == [1]
    assert values == [0]


def test_function_removes_its_own_instrumentation() -> None:
    handles: list[Instrumentation] = []

    def f(x: int, remove: bool) -> int:
        if remove:
            handles.pop().remove()
        y = x + 1
        return y

    original = f.__code__
    values: list[Any] = []
    for sink in (values, values.append):
        handles.append(instrument(f, "y", sink=sink))
        assert [f(1, False), f(2, True), f(3, False)] == [2, 3, 4]
        assert f.__code__ is original
    assert values == [2, 2]


def test_function_instruments_itself() -> None:
    values: list[Any] = []
    handles: list[Instrumentation] = []

    def f(depth: int) -> int:
        if depth == 1:
            handles.append(instrument(f, "depth", sink=values))
        return f(depth - 1) if depth else 0

    f(2)
    handles[0].remove()
    assert values == [0]  # frames from before keep the code from before


def test_callback_removes_its_own_instrumentation() -> None:
    seen: list[Any] = []

    def sink(value: Any) -> None:
        seen.append(value)
        handle.remove()

    handle = instrument(scale, "factor", sink=sink)
    assert [scale(1), scale(2)] == [3, 5]
    assert seen == [2]
    assert scale.__code__ is ORIGINAL


def test_callback_calls_the_function_again() -> None:
    seen: list[Any] = []

    def sink(x: Any) -> None:
        seen.append(x)
        if x:
            scale(x - 1)

    with instrument(scale, "x", sink=sink):
        scale(3)
    assert seen == [3, 2, 1, 0]


def test_clone_delivers_only_where_the_sink_is() -> None:
    def f(x: int) -> int:
        y = x + 1
        return y

    values: list[Any] = []
    names: dict[str, Any] = {"__builtins__": {}}
    shadowed: dict[str, Any] = {"NameError": None, "Exception": 5, "AttributeError": KeyError}
    for sink in (values, values.append):
        with instrument(f, "y", sink=sink), instrument(f, "y", "x", sink=[]):
            for namespace in (names, shadowed):
                clone = types.FunctionType(f.__code__, namespace)
                assert clone(1) == 2
            f(10)
    assert values == [11, 11]


def test_shadowed_builtins() -> None:
    """The guard must not look NameError up by name: here it is something else, or not there."""
    source = "def f(x, bind):\n    if bind:\n        y = x\n    return x\n"
    for namespace in ({"NameError": 5, "Exception": 6}, {"__builtins__": {}}):
        exec(compile(source, "<test>", "exec"), namespace)
        f: Any = namespace["f"]
        one: list[Any] = []
        both: list[Any] = []
        with instrument(f, "y", sink=one), instrument(f, "y", "x", sink=both):
            with instrument(f, "y", sink=both.append):
                assert [f(1, False), f(2, True)] == [1, 2]
        assert one == [2]
        assert both == [(UNBOUND, 1), UNBOUND, (2, 2), 2]


def test_no_name_is_added_to_the_callers_view() -> None:
    """The function sees its own locals, and its argument names stay."""

    def f(x: int) -> Any:
        y = x
        return sorted(locals()), y

    with instrument(f, "y", sink=print), instrument(f, "x", sink=[]):
        assert f.__code__.co_varnames == ("x", "y")
        assert f.__code__.co_nlocals == 2
        before = inspect.signature(f)
    assert inspect.signature(f) == before
