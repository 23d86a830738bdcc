"""Recording may fail; the function must not notice, and who reads must."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.capture.conftest import Recorded
from visualizer import get_local


@dataclass
class Refusing:
    """A dataclass whose copying raises what it is told to raise."""

    error: BaseException

    def __copy__(self) -> Refusing:
        raise self.error


class RefusingList(list[Any]):
    """A list whose elements can't be had."""

    def __init__(self, error: BaseException) -> None:
        super().__init__([1])
        self.error = error

    def __iter__(self) -> Any:
        raise self.error


def make_function() -> Callable[[Any], Any]:
    @get_local("attn")
    def attend(x: Any) -> Any:
        attn = x
        return attn

    return attend


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError("no"), RecursionError("no")])
def test_the_function_is_undisturbed_and_reading_warns(
    error: Exception, captured_warnings: Recorded
) -> None:
    get_local.activate()
    attend, refusing = make_function(), RefusingList(error)
    assert attend(1) == 1
    assert attend(refusing) is refusing
    assert attend(2) == 2
    assert captured_warnings == []
    assert get_local.cache["attend"] == [1, 2]
    (warning,) = captured_warnings
    assert str(warning.message) == (
        "values are missing: recording 'attn' of make_function.<locals>.attend() raised "
        f"{type(error).__name__}: no"
    )
    assert get_local.cache["attend"] == [1, 2]
    assert len(captured_warnings) == 1
    get_local.deactivate()


def test_an_object_that_refuses_to_be_copied_is_kept_by_reference() -> None:
    get_local.activate()
    attend, refusing = make_function(), Refusing(ValueError("no"))
    attend(refusing)
    assert get_local.cache["attend"][0].value is refusing


def test_the_first_of_several_errors_is_told(captured_warnings: Recorded) -> None:
    get_local.activate()
    attend = make_function()
    attend(RefusingList(ValueError("first")))
    attend(RefusingList(OSError("second")))
    assert get_local.cache["attend"] == []
    assert "raised ValueError: first" in str(captured_warnings[0].message)
    with pytest.raises(IndexError, match="raised ValueError: first"):
        get_local.cache["attend"][0]


def test_other_variables_of_the_call_are_kept(captured_warnings: Recorded) -> None:
    get_local.activate()

    @get_local("good", "bad")
    def attend(x: int) -> int:
        good, bad = x, RefusingList(ValueError("no"))
        return x

    attend(1)
    assert get_local.cache["attend.good"] == [1]
    assert captured_warnings == []
    assert get_local.cache["attend.bad"] == []
    assert len(captured_warnings) == 1


def test_clear_forgets_the_error(captured_warnings: Recorded) -> None:
    get_local.activate()
    attend = make_function()
    attend(RefusingList(ValueError("no")))
    get_local.clear()
    attend(1)
    assert get_local.cache["attend"] == [1]
    assert captured_warnings == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_gets_through(error: type[BaseException]) -> None:
    get_local.activate()
    attend = make_function()
    with pytest.raises(error):
        attend(RefusingList(error()))
    assert attend(1) == 1
    assert get_local.cache["attend"] == [1]


HANGING = """
from dataclasses import dataclass
from visualizer import get_local

@get_local("attn")
def attend(x):
    attn = x
    return x

@dataclass
class Measured:
    size: int
    @property
    def nbytes(self):
        return attend(self.size)

get_local.activate()
attend(Measured(3))
get_local.deactivate()
assert Measured(3) in get_local.cache["attend"]
"""


def test_measuring_that_calls_the_function_itself_ends() -> None:
    """In a process of its own, since a lock that is never released would stop all tests."""
    done = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_copying_that_calls_the_function_itself_ends(captured_warnings: Recorded) -> None:
    get_local.activate()
    attend = make_function()

    class Calling(list[Any]):
        def __iter__(self) -> Any:
            attend([3])
            return iter([4])

    attend(Calling([4]))
    assert get_local.cache["attend"] == [[4]]
    (warning,) = captured_warnings
    assert "because another value was being copied, and that ran this function" in str(
        warning.message
    )
