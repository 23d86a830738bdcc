"""Functions that the original `get_local` got wrong: with ours they do what they did before."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from tests.capture.conftest import WriteModule
from visualizer import get_local

Function = Callable[..., Any]


def constant(x: int) -> int:
    attn = x
    return 5


def implicit_none(x: int) -> None:
    attn = x


def within_with(x: int) -> int:
    with nullcontext():
        attn = x
        return attn + 1


def after_with(x: int) -> int:
    with nullcontext():
        attn = x
    return attn + 1


def several_returns(x: int) -> str:
    attn = x
    if x > 2:
        return "large"
    try:
        if x > 1:
            return "middle"
    finally:
        attn += 100
    return "small"


def conditional_expression(x: int) -> object:
    attn = x
    return attn if x > 1 else None


def pair(x: int) -> tuple[int, int]:
    attn = x
    return attn, -attn


def captured_by_closure(x: int) -> Function:
    attn = x
    return lambda: attn


def list_value(x: int) -> int:
    attn = [x, None]
    return len(attn)


def none_value(x: int) -> int:
    attn = None
    return x


@pytest.mark.parametrize(
    ("function", "results", "values"),
    [
        (constant, [5, 5, 5], [1, 2, 3]),
        (implicit_none, [None, None, None], [1, 2, 3]),
        (within_with, [2, 3, 4], [1, 2, 3]),
        (after_with, [2, 3, 4], [1, 2, 3]),
        (several_returns, ["small", "middle", "large"], [101, 102, 3]),
        (conditional_expression, [None, 2, 3], [1, 2, 3]),
        (pair, [(1, -1), (2, -2), (3, -3)], [1, 2, 3]),
        (list_value, [2, 2, 2], [[1, None], [2, None], [3, None]]),
        (none_value, [1, 2, 3], [None, None, None]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_results_and_values(function: Function, results: list[Any], values: list[Any]) -> None:
    assert [function(x) for x in (1, 2, 3)] == results
    with get_local.patch(function, "attn"):
        assert [function(x) for x in (1, 2, 3)] == results
    assert get_local.cache[function.__name__] == values
    assert [function(x) for x in (1, 2, 3)] == results


def test_a_cell_variable_gives_its_contents() -> None:
    with get_local.patch(captured_by_closure, "attn"):
        assert captured_by_closure(7)() == 7
    assert get_local.cache["captured_by_closure"] == [7]


def test_a_free_variable_gives_its_contents_at_return() -> None:
    get_local.activate()
    total = 0

    @get_local("total")
    def add(x: int) -> None:
        nonlocal total
        total += x

    add(1)
    add(2)
    assert get_local.cache["add"] == [1, 3]


def test_arguments_are_locals() -> None:
    get_local.activate()

    @get_local("x", "args", "options")
    def take(x: int, *args: int, **options: int) -> None:
        x += 1

    take(1, 2, 3, scale=4)
    assert get_local.cache["take.x"] == [2]
    assert get_local.cache["take.args"] == [(2, 3)]
    assert get_local.cache["take.options"] == [{"scale": 4}]


def test_a_generator_is_captured_when_it_ends() -> None:
    get_local.activate()

    @get_local("seen")
    def numbers(count: int) -> Iterator[int]:
        seen = 0
        for number in range(count):
            seen += number
            yield number

    running = numbers(3)
    assert [next(running), next(running)] == [0, 1]
    assert get_local.cache["numbers"] == []
    assert list(running) == [2]
    assert get_local.cache["numbers"] == [3]


def test_a_suspended_generator_ends_in_peace_after_deactivate() -> None:
    @get_local("seen")
    def numbers() -> Iterator[int]:
        seen = 1
        yield seen
        seen = 2

    get_local.activate()
    running = numbers()
    next(running)
    get_local.deactivate()
    assert list(running) == []
    assert list(numbers()) == [1]
    assert get_local.cache["numbers"] == []


def test_coroutines_and_async_generators() -> None:
    get_local.activate()

    @get_local("doubled")
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        doubled = 2 * x
        return doubled

    @get_local("last")
    async def count(n: int) -> AsyncIterator[int]:
        last = None
        for last in range(n):
            yield last

    async def run() -> list[int]:
        results = await asyncio.gather(*(double(x) for x in (1, 2)))
        return [*results, *[x async for x in count(3)]]

    assert asyncio.run(run()) == [2, 4, 0, 1, 2]
    assert get_local.cache["double"] == [2, 4]
    assert get_local.cache["count"] == [2]


def test_names_docs_and_signature_are_kept() -> None:
    def attend(x: int, *, scale: float = 1.0) -> float:
        """Attend."""
        attn = x * scale
        return attn

    before = [inspect.signature(attend), attend.__kwdefaults__, attend.__annotations__]
    get_local.activate()
    assert get_local("attn")(attend) is attend
    assert [inspect.signature(attend), attend.__kwdefaults__, attend.__annotations__] == before
    assert attend.__name__ == "attend"
    assert attend.__doc__ == "Attend."
    assert attend.__module__ == __name__
    assert inspect.getsource(attend).lstrip().startswith("def attend")


def test_an_alias_returns_what_the_function_returns() -> None:
    def attend(x: int) -> int:
        attn = x
        return attn + 1

    alias = attend
    get_local.activate()
    decorated = get_local("attn")(attend)
    assert alias(1) == 2
    assert decorated(2) == 3
    assert get_local.cache["attend"] == [1, 2]


MODULE = """
from visualizer import get_local

class Attention:
    @get_local("attn")
    def forward(self, x):
        attn = x, __name__
        return x
"""


def test_one_qualname_in_two_modules_does_not_mix(write_module: WriteModule) -> None:
    get_local.activate()
    first, second = write_module("mod_first", MODULE), write_module("mod_second", MODULE)
    first.Attention().forward(1)
    second.Attention().forward(2)
    second.Attention().forward(3)
    assert sorted(get_local.cache) == [
        "mod_first:Attention.forward",
        "mod_second:Attention.forward",
    ]
    assert get_local.cache["mod_first:Attention.forward"] == [(1, "mod_first")]
    assert get_local.cache["mod_second:Attention.forward"] == [
        (2, "mod_second"),
        (3, "mod_second"),
    ]
    with pytest.raises(KeyError, match="fits more than one"):
        get_local.cache["Attention.forward"]
