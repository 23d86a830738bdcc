"""What can't be decorated, and what is said then. The messages are pinned."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from visualizer import get_local
from visualizer.errors import NotInstrumentableError, UnknownLocalError


class Attention:
    def forward(self, x: int) -> int:
        attn = x
        return attn


class Layer:
    def __call__(self, x: int) -> int:
        return self.forward(x)

    def forward(self, x: int) -> int:
        attn = x
        return attn


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            Attention,
            "Attention is a class, not a Python function; take the method that has the local, "
            "for example Attention.forward.",
        ),
        (
            Layer(),
            "an object of type tests.capture.test_refusals.Layer, not a Python function; "
            "its code is in Layer.forward: take that.",
        ),
        (len, "len is a builtin or a function of a C extension, not a Python function; "),
        (math.sin, "sin is a builtin or a function of a C extension, not a Python function; "),
        (str.upper, "str.upper is a method written in C, not a Python function; "),
        (functools.partial(len), "is a builtin or a function of a C extension"),
        (5, "5 is an object of type builtins.int, not a Python function; "),
    ],
)
@pytest.mark.parametrize("is_active", [True, False])
def test_what_is_no_python_function(target: Any, message: str, is_active: bool) -> None:
    if is_active:
        get_local.activate()
    for take in (get_local("attn"), lambda target: get_local.patch(target, "attn")):
        with pytest.raises(NotInstrumentableError, match=re.escape(message)) as raised:
            take(target)
        assert isinstance(raised.value, TypeError)
    assert len(get_local.cache) == 0


def test_without_brackets() -> None:
    with pytest.raises(TypeError) as raised:

        @get_local  # type: ignore[arg-type]
        def attend(x: int) -> int:
            return x

    name = f"{test_without_brackets.__qualname__}.<locals>.attend"
    assert str(raised.value) == (
        f"get_local needs to know which local to take of {name}: write @get_local('attn') "
        "above it, not @get_local."
    )


@pytest.mark.parametrize(
    ("names", "shown"), [((), "()"), ((5,), "(5,)"), (("attn", None), "('attn', None)")]
)
def test_without_names(names: tuple[Any, ...], shown: str) -> None:
    message = f"get_local takes the names of locals, such as get_local('attn'), not {shown}."
    with pytest.raises(TypeError, match=re.escape(message)):
        get_local(*names)
    with pytest.raises(TypeError, match=re.escape(message)):
        get_local.patch(Attention.forward, *names)


def decorate(name: str, function: Callable[..., Any]) -> str:
    """Decorate while inactive, and return what is said about an unknown local."""
    assert not get_local.is_activate
    code = function.__code__
    with pytest.raises(UnknownLocalError) as raised:
        get_local(name)(function)
    assert isinstance(raised.value, NameError)
    assert function.__code__ is code
    get_local.activate()
    assert len(get_local.cache) == 0
    return str(raised.value)


def test_an_unknown_name_is_refused_while_inactive() -> None:
    assert decorate("atn", Attention.forward) == (
        "Attention.forward() has no local named 'atn'; it has self, x, attn. Did you mean 'attn'?"
    )


def test_a_global_is_no_local() -> None:
    def attend() -> float:
        return math.pi

    assert "attend() has no local named 'math'; it has no locals at all." in decorate(
        "math", attend
    )


def test_a_comprehensions_variable_is_no_local() -> None:
    def attend(scores: list[int]) -> list[int]:
        return [2 * score for score in scores]

    message = decorate("score", attend)
    assert "'score' is only a comprehension's variable in" in message
    assert "assign the value you want to a name of its own." in message


def test_a_local_of_an_inner_function_names_that() -> None:
    def attend(x: int) -> int:
        def inner() -> int:
            attn = x
            return attn

        return inner()

    assert "attend.<locals>.inner() inside it has one: instrument that function.)" in decorate(
        "attn", attend
    )


def test_one_unknown_name_among_known_ones_takes_nothing() -> None:
    with pytest.raises(UnknownLocalError):
        get_local("attn", "q")(Attention.forward)
    get_local.activate()
    Attention().forward(1)
    assert len(get_local.cache) == 0
