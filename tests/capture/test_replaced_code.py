"""Somebody else replaces a function's code while it is captured: theirs stays, and it is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.capture.conftest import Recorded
from visualizer import get_local
from visualizer.errors import CodeReplacedError


def make_function() -> Callable[[int], int]:
    def attend(x: int) -> int:
        attn = x
        return attn

    return attend


def other(x: int) -> int:
    attn = -x
    return attn


def test_deactivate_warns_and_restores_the_others(captured_warnings: Recorded) -> None:
    first, second, third = (get_local("attn")(make_function()) for _ in range(3))
    code = first.__code__
    get_local.activate()
    second.__code__ = other.__code__
    get_local.deactivate()
    assert first.__code__ is third.__code__ is code
    assert second.__code__ is other.__code__
    (warning,) = captured_warnings
    assert "was replaced by somebody else after it was instrumented" in str(warning.message)
    assert warning.filename == __file__


def test_an_explicit_remove_raises_and_the_code_stays() -> None:
    attend = make_function()
    patch = get_local.patch(attend, "attn")
    attend.__code__ = other.__code__
    with pytest.raises(CodeReplacedError, match="was replaced by somebody else"):
        patch.remove()
    assert attend.__code__ is other.__code__
    patch.remove()


def test_the_end_of_a_block_warns(captured_warnings: Recorded) -> None:
    attend = make_function()
    with get_local.patch(attend, "attn"):
        attend.__code__ = other.__code__
    assert attend.__code__ is other.__code__
    assert "was replaced by somebody else" in str(captured_warnings[0].message)


def test_the_end_of_a_block_does_not_hide_what_was_raised(captured_warnings: Recorded) -> None:
    attend = make_function()
    with pytest.raises(ValueError, match="inside"), get_local.patch(attend, "attn"):
        attend.__code__ = other.__code__
        raise ValueError("inside")


def test_activating_again_captures_the_code_that_is_there() -> None:
    attend = get_local("attn")(make_function())
    attend.__code__ = other.__code__
    get_local.activate()
    assert attend(1) == -1
    assert get_local.cache["attend"] == [-1]
    get_local.deactivate()
    assert attend.__code__ is other.__code__


def test_code_without_the_local_is_left_alone(captured_warnings: Recorded) -> None:
    attend = get_local("attn")(make_function())
    untouched = get_local("attn")(make_function())
    attend.__code__ = (lambda x: x).__code__
    get_local.activate()
    assert attend(1) == untouched(1) == 1
    assert "has no local named 'attn'" in str(captured_warnings[0].message)
    assert get_local.cache["attend"] == [1]
