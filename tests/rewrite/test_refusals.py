"""What every refusal says."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest

from tests.rewrite.test_targets import Shop, deep, scale
from visualizer._compat import facts_for
from visualizer.errors import (
    NotInstrumentableError,
    TargetNotFoundError,
    UnknownLocalError,
    UnsupportedPythonError,
)
from visualizer.rewrite import check_locals, instrument

HERE = Shop.__module__


def _with_message(message: str) -> str:
    return f"^{re.escape(message)}$"


def comprehensions(n: int) -> list[int]:
    squares = [each * each for each in range(n)]
    return squares


def outer_function(n: int) -> int:
    def inner(deeper: int) -> int:
        return deeper

    return inner(n)


def nothing() -> None:
    return None


UNKNOWN: dict[str, tuple[object, str, str]] = {
    "near": (
        scale,
        "facotr",
        "scale() has no local named 'facotr'; it has x, factor. Did you mean 'factor'?",
    ),
    "far": (scale, "zzz", "scale() has no local named 'zzz'; it has x, factor."),
    "none": (nothing, "x", "nothing() has no local named 'x'; it has no locals at all."),
    "comprehension": (
        comprehensions,
        "each",
        "'each' is only a comprehension's variable in comprehensions(), and it is gone when the "
        "comprehension ends; assign the value you want to a name of its own.",
    ),
    "inner": (
        outer_function,
        "deeper",
        "outer_function() has no local named 'deeper'; it has n, inner. "
        "(outer_function.<locals>.inner() inside it has one: instrument that function.)",
    ),
    "global": (scale, "shop", "scale() has no local named 'shop'; it has x, factor."),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_local(kind: str) -> None:
    target, name, message = UNKNOWN[kind]
    code = target.__code__  # type: ignore[attr-defined]
    with pytest.raises(UnknownLocalError, match=_with_message(message)):
        instrument(target, name, sink=[])
    with pytest.raises(NameError, match=_with_message(message)):
        check_locals(target, name)
    assert target.__code__ is code  # type: ignore[attr-defined]


def test_one_unknown_among_several_installs_nothing() -> None:
    code = scale.__code__
    with pytest.raises(UnknownLocalError, match="'y'"):
        instrument(scale, "x", "y", sink=[])
    assert scale.__code__ is code


def test_name_only_in_a_wrapper() -> None:
    wrapper = deep.__code__
    message = (
        "deep() has no local named 'outcome'; it has x, factor. The wrapper around it has one "
        f"(passing_on.<locals>.wrapper, {wrapper.co_filename}:{wrapper.co_firstlineno}), but "
        "wrappers are looked through: take it where the wrapper is made."
    )
    with pytest.raises(UnknownLocalError, match=_with_message(message)):
        instrument(deep, "outcome", sink=[])


class Called:
    def __call__(self, x: int) -> int:
        return x


class Layer:
    def __call__(self, x: int) -> int:
        return x

    def forward(self, x: int) -> int:
        return x


def _numpy_like_ufunc() -> object:
    kind = type("ufunc", (), {"__module__": "numpy", "__repr__": lambda self: "<ufunc 'exp'>"})
    return kind()


def _cython_like_function() -> object:
    return type("cython_function_or_method", (), {"__module__": "_cython"})()


ONLY_PYTHON = (
    "only a function written in Python has locals that can be taken: take one that calls it"
)

REFUSED: dict[str, tuple[object, str]] = {
    "builtin": (
        len,
        f"len is a builtin or a function of a C extension, not a Python function; {ONLY_PYTHON}.",
    ),
    "bound C method": (
        [].append,
        "list.append is a builtin or a function of a C extension, not a Python function; "
        f"{ONLY_PYTHON}.",
    ),
    "C method": (
        str.join,
        f"str.join is a method written in C, not a Python function; {ONLY_PYTHON}.",
    ),
    "slot": (
        int.__add__,
        f"int.__add__ is a method written in C, not a Python function; {ONLY_PYTHON}.",
    ),
    "class": (
        Shop,
        "Shop is a class, not a Python function; take the method that has the local, for example "
        "Shop.method.",
    ),
    "class with forward": (
        Layer,
        "Layer is a class, not a Python function; take the method that has the local, for example "
        "Layer.forward.",
    ),
    "class without methods": (
        int,
        "int is a class, not a Python function; take the method that has the local, for example "
        "int.<method>.",
    ),
    "code": (scale.__code__, f"is a code object, not a Python function; {ONLY_PYTHON}."),
    "ufunc": (
        _numpy_like_ufunc(),
        f"<ufunc 'exp'> is a numpy ufunc, written in C, not a Python function; {ONLY_PYTHON}.",
    ),
    "Cython": (
        _cython_like_function(),
        f"is a function compiled by Cython, not a Python function; {ONLY_PYTHON}.",
    ),
    "module": (re, f"is a module, not a Python function; {ONLY_PYTHON}."),
    "callable instance": (
        Called(),
        f"is an object of type {__name__}.Called, not a Python function; its code is in "
        "Called.__call__: take that.",
    ),
    "callable layer": (
        Layer(),
        f"is an object of type {__name__}.Layer, not a Python function; its code is in "
        "Layer.forward: take that.",
    ),
    "partial of a builtin": (
        functools.partial(sorted, []),
        f"is a builtin or a function of a C extension, not a Python function; {ONLY_PYTHON}.",
    ),
    "None": (
        None,
        f"None is an object of type builtins.NoneType, not a Python function; {ONLY_PYTHON}.",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_not_a_python_function(kind: str) -> None:
    target, message = REFUSED[kind]
    with pytest.raises(NotInstrumentableError, match=re.escape(message)) as caught:
        instrument(target, "x", sink=[])
    assert isinstance(caught.value, TypeError)
    assert str(caught.value).endswith(message)


NOT_FOUND: dict[str, tuple[str, str]] = {
    "no colon": (
        f"{HERE}.Shop.method",
        f"'{HERE}.Shop.method' does not say where the module ends; write "
        f"'package.module:Qual.name', for example '{HERE}:Shop.method'.",
    ),
    "no colon, function": (
        "json.dumps",
        "'json.dumps' does not say where the module ends; write 'package.module:Qual.name', for "
        "example 'json:dumps'.",
    ),
    "no path": (
        "json:",
        "'json:' does not say where the module ends; write 'package.module:Qual.name', for "
        "example 'json:function'.",
    ),
    "module": (
        "surely_not_there:f",
        "'surely_not_there:f' does not resolve: there is no module 'surely_not_there'. Check the "
        "part before the colon, and that its package is installed.",
    ),
    "submodule": (
        "json.surely.deeper:f",
        "'json.surely.deeper:f' does not resolve: there is no module 'json.surely'. Check the "
        "part before the colon, and that its package is installed.",
    ),
    "attribute": (
        f"{HERE}:Shop.metod",
        f"'{HERE}:Shop.metod' does not resolve: {HERE}:Shop has no attribute 'metod'. Did you "
        "mean 'method'?",
    ),
    "attribute, nothing near": (
        f"{HERE}:zzzzzzzz",
        f"'{HERE}:zzzzzzzz' does not resolve: {HERE} has no attribute 'zzzzzzzz'.",
    ),
    "locals": (
        f"{HERE}:passing_on.<locals>.wrapper",
        f"'{HERE}:passing_on.<locals>.wrapper' is inside a function ({HERE}:passing_on) and does "
        "not exist before that runs; pass the function object itself.",
    ),
}


@pytest.mark.parametrize("kind", NOT_FOUND)
def test_target_not_found(kind: str) -> None:
    target, message = NOT_FOUND[kind]
    with pytest.raises(TargetNotFoundError, match=_with_message(message)) as caught:
        instrument(target, "x", sink=[])
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize(
    ("sink", "kind"), [((), "tuple"), (None, "NoneType"), (set(), "set"), ("values", "str")]
)
def test_sink_of_a_wrong_type(sink: Any, kind: str) -> None:
    message = (
        f"a sink is a list or a function, not {kind}; for another collection pass its method, "
        "such as sink=values.append."
    )
    with pytest.raises(TypeError, match=_with_message(message)):
        instrument(scale, "factor", sink=sink)


def test_no_names() -> None:
    for ask in (lambda: instrument(scale, sink=[]), lambda: check_locals(scale)):
        with pytest.raises(
            TypeError, match=_with_message("name at least one local to take, such as 'attn'.")
        ):
            ask()


def test_name_that_is_no_string() -> None:
    with pytest.raises(TypeError, match=_with_message("a local is named by a str, not by int 1.")):
        instrument(scale, 1, sink=[])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("implementation", "version", "advice"),
    [
        ("CPython", (3, 99), "look for a newer release of get-local, or use one of those Pythons"),
        ("CPython", (3, 8), "use one of those Pythons"),
        ("PyPy", (3, 11), "use one of those Pythons"),
    ],
)
def test_unsupported_python(implementation: str, version: tuple[int, int], advice: str) -> None:
    message = (
        "visualizer.rewrite knows the bytecode of CPython 3.11, 3.12, 3.13, and this is "
        f"{implementation} {version[0]}.{version[1]}; a wrong guess could crash the interpreter, "
        f"so nothing was instrumented. To go on, {advice}."
    )
    with pytest.raises(UnsupportedPythonError, match=_with_message(message)):
        facts_for(implementation, version)


def test_unsupported_python_installs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_implementation", lambda: "PyPy")
    code = scale.__code__
    with pytest.raises(UnsupportedPythonError):
        instrument(scale, "factor", sink=[])
    assert scale.__code__ is code
