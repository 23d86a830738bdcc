"""A name that was never bound: said once, when somebody looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.capture.conftest import Recorded
from visualizer import get_local
from visualizer.errors import CaptureWarning


def make_attention() -> Callable[..., Any]:
    @get_local("attn")
    def attend(x: int, fused: bool = True) -> int:
        if not fused:
            attn = x
        return x

    return attend


EXPECTED = (
    "make_attention.<locals>.attend() returned 2×, and 'attn' was never bound then. A branch "
    "that does not assign it was taken; in attention code that is the fused kernel, which keeps "
    "no map. Take it with capture(attention=True), or switch the fused kernel off (timm: "
    "module.fused_attn = False; transformers: attn_implementation='eager')."
)


@pytest.fixture
def attend() -> Callable[..., Any]:
    get_local.activate()
    return make_attention()


def test_one_warning_at_the_first_read(
    attend: Callable[..., Any], captured_warnings: Recorded
) -> None:
    attend(1)
    attend(2)
    assert captured_warnings == []
    assert get_local.cache["attend"] == []
    assert [str(warning.message) for warning in captured_warnings] == [EXPECTED]
    assert captured_warnings[0].category is CaptureWarning
    assert get_local.cache["attend"] == []
    dict(get_local.cache)
    assert len(captured_warnings) == 1


def test_the_warning_points_to_who_reads(
    attend: Callable[..., Any], captured_warnings: Recorded
) -> None:
    attend(1)

    def read() -> list[Any]:
        return get_local.cache["attend"]

    read()
    (warning,) = captured_warnings
    assert warning.filename == __file__
    assert warning.lineno == read.__code__.co_firstlineno + 1


def test_bound_on_some_calls_is_no_reason_to_warn(
    attend: Callable[..., Any], captured_warnings: Recorded
) -> None:
    attend(1)
    attend(2, fused=False)
    attend(3)
    assert get_local.cache["attend"] == [2]
    assert captured_warnings == []


def test_never_called_is_no_reason_to_warn(
    attend: Callable[..., Any], captured_warnings: Recorded
) -> None:
    assert get_local.cache["attend"] == []
    assert captured_warnings == []


def test_an_index_and_the_repr_say_it_too(
    attend: Callable[..., Any], captured_warnings: Recorded
) -> None:
    attend(1)
    attend(2)
    assert EXPECTED in repr(get_local.cache)
    values = get_local.cache["attend"]
    with pytest.raises(IndexError) as raised:
        values[0]
    assert str(raised.value) == f"nothing was captured: {EXPECTED}"


def test_after_clear_it_is_said_again(
    attend: Callable[..., Any], captured_warnings: Recorded
) -> None:
    for _ in range(2):
        attend(1)
        get_local.cache["attend"]
        get_local.clear()
        assert get_local.cache["attend"] == []
    assert len(captured_warnings) == 2
