"""Sinks that raise, and that an instrumented function takes nothing of them along."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import types
from typing import Any

import pytest

from tests.rewrite.shapes import observe
from visualizer.errors import SinkError
from visualizer.rewrite import instrument


def scale(x: Any) -> Any:
    factor = x * 2
    return factor + 1


ORIGINAL = scale.__code__


class _Failing:
    """A sink that raises at every call, each time with another argument."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, *values: Any) -> None:
        self.calls += 1
        raise self.error(self.calls)


def test_error_is_kept_and_raised_by_remove() -> None:
    sink = _Failing(ValueError)
    handle = instrument(scale, "x", "factor", sink=sink)
    assert [scale(1), scale(2)] == [3, 5]
    assert sink.calls == 2
    assert isinstance(handle.error, ValueError)
    with pytest.raises(SinkError) as caught:
        handle.remove()
    assert str(caught.value) == (
        "the sink for x, factor of scale() raised ValueError: 1. The function was not disturbed; "
        "values from that call on may be missing."
    )
    assert caught.value.__cause__ is handle.error
    assert scale.__code__ is ORIGINAL
    handle.remove()  # it has said so once


def test_one_failing_sink_leaves_the_others_alone() -> None:
    before: list[Any] = []
    after: list[Any] = []
    handle = None
    with instrument(scale, "x", sink=before):
        handle = instrument(scale, "x", sink=_Failing(OSError))
        with instrument(scale, "x", sink=after.append):
            assert scale(1) == 3
        with pytest.raises(SinkError):
            handle.remove()
    assert (before, after) == ([1], [1])


def test_sink_with_wrong_arguments() -> None:
    with pytest.raises(SinkError, match="TypeError"), instrument(scale, "x", sink=lambda: None):
        assert scale(1) == 3


def test_builtin_sink_that_raises() -> None:
    """A builtin has no frame of its own: its error arises in the instrumented function's."""

    def f(x: Any) -> Any:
        return x

    with pytest.raises(SinkError, match="unhashable"), instrument(f, "x", sink=set().add):
        assert f([]) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_passes(error: type[BaseException]) -> None:
    def caller() -> Any:
        return scale(1)

    sink = _Failing(error)
    with instrument(scale, "x", sink=sink) as handle:
        with pytest.raises(error) as caught:
            caller()
        assert handle.error is None
    frames = [entry.name for entry in caught.traceback]
    assert frames[-3:] == ["caller", "scale", "__call__"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupt_from_one_sink_with_another_around(error: type[BaseException]) -> None:
    """The error of the second is not taken for that of the first, nor for an unbound name."""
    values: list[Any] = []
    with instrument(scale, "x", "factor", sink=values):
        handle = instrument(scale, "x", sink=_Failing(error))
        outcome = observe(lambda: scale(1))
        if error is ValueError:
            assert outcome.result == 3
            with pytest.raises(SinkError):
                handle.remove()
        else:
            assert outcome.error is not None
            assert outcome.error[0] is KeyboardInterrupt
            handle.remove()
    assert values == [(1, 2)]


def test_name_error_from_a_sink_is_the_sinks_error() -> None:
    def sink(value: Any) -> None:
        raise NameError("of the sink")

    with pytest.raises(SinkError, match="of the sink"), instrument(scale, "x", sink=sink):
        assert scale(1) == 3


def test_exc_info_is_undisturbed() -> None:
    """Neither an unbound name nor a failing sink is to be seen in a handler around the return."""

    def f(x: int) -> Any:
        try:
            raise KeyError(x)
        except KeyError:
            if x:
                late = x
            return sys.exc_info()[1].args

    def outer() -> Any:
        try:
            raise OSError("outer")
        except OSError as error:
            result = f(0), f(1)
            assert sys.exc_info()[1] is error
            assert error.__context__ is None
        try:
            f(2)
            raise LookupError("later")
        except LookupError as error:
            assert error.__context__ is None
        return result

    expected = outer()
    values: list[Any] = []
    with instrument(f, "late", sink=values), instrument(f, "late", "x", sink=[]):
        with instrument(f, "late", sink=values.append):
            with pytest.raises(SinkError), instrument(f, "late", sink=_Failing(ValueError)):
                assert outer() == expected == ((0,), (1,))
    assert sys.exc_info() == (None, None, None)
    assert len(values) == 5


def test_recursion_limit_in_the_sink_does_not_disturb() -> None:
    """Where no call fits any more, the sink fails; the function does not."""

    def f(n: int) -> int:
        try:
            return f(n + 1)
        except RecursionError:
            return n

    values: list[Any] = []
    with instrument(f, "n", sink=values):
        handle = instrument(f, "n", sink=lambda value: None)
        deepest = f(0)
        assert values == list(range(deepest, -1, -1))
        if handle.error is None:
            handle.remove()
        else:
            assert isinstance(handle.error, RecursionError)
            with pytest.raises(SinkError):
                handle.remove()


def test_list_that_changes_size_in_a_sink() -> None:
    values: list[Any] = []

    def sink(value: Any) -> None:
        values.clear()

    with instrument(scale, "x", sink=values), instrument(scale, "x", sink=sink):
        assert [scale(1), scale(2)] == [3, 5]
    assert values == []


def _holder_of(function: types.FunctionType) -> Any:
    keys = [key for key in function.__globals__ if key.startswith("__visualizer_sink_")]
    (key,) = keys
    return function.__globals__[key]


def test_holder_travels_empty() -> None:
    """What pickles a function's globals by value would otherwise take every value along."""
    values = [object()]
    with instrument(scale, "x", sink=values):
        holder = _holder_of(scale)
        assert pickle.loads(pickle.dumps(holder)) == ()
        assert copy.copy(holder) == ()
        assert copy.deepcopy(holder) == ()


def test_cloudpickle_takes_no_values_along() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    module = types.ModuleType("__main__")  # cloudpickle pickles its functions by value
    source = "def f(x, bind=True):\n    if bind: y = x + base\n    return x\nbase = 10\n"
    exec(compile(source, "<main>", "exec"), vars(module))
    values: list[Any] = [io.StringIO("can't be pickled"), "x" * 100_000]
    sent = []
    with instrument(module.f, "y", sink=values):
        sent.append(cloudpickle.dumps(module.f))
    with instrument(module.f, "y", "x", sink=values):
        sent.append(cloudpickle.dumps(module.f))
    with instrument(module.f, "y", sink=values.append):
        sent.append(cloudpickle.dumps(module.f))
    for data in sent:
        assert len(data) < 5_000
        arrived = pickle.loads(data)
        assert arrived.__globals__ is not vars(module)
        assert [arrived(1), arrived(1, bind=False)] == [1, 1]
    assert len(values) == 2
