"""What people who know `get_local` rely on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import pytest

from visualizer import get_local
from visualizer.rewrite import UNBOUND


class Attention:
    def forward(self, x: int) -> int:
        attn = [x, x + 1]
        return sum(attn)


def make_method() -> Callable[..., int]:
    """Return the `forward` of a class of its own, not decorated."""

    class Attention:
        def forward(self, x: int) -> int:
            attn = [x, x + 1]
            return sum(attn)

    return Attention.forward


def test_it_is_a_class_with_class_attributes() -> None:
    assert inspect.isclass(get_local)
    assert get_local.is_activate is False
    assert isinstance(get_local.cache, Mapping)
    for name in ("activate", "deactivate", "clear", "patch"):
        assert isinstance(inspect.getattr_static(get_local, name), classmethod)


def test_a_decorator_is_an_instance_and_tells_its_names() -> None:
    decorator = get_local("q", "attn")
    assert isinstance(decorator, get_local)
    assert repr(decorator) == "get_local('q', 'attn')"


def test_inactive_gives_the_same_function_with_the_same_code() -> None:
    function = make_method()
    code = function.__code__
    assert get_local("attn")(function) is function
    assert function.__code__ is code
    function(None, 1)
    assert function.__code__ is code
    assert len(get_local.cache) == 0
    assert "forward" not in get_local.cache


def test_active_makes_an_empty_list_at_decoration() -> None:
    get_local.activate()
    function = get_local("attn")(make_method())
    key = "make_method.<locals>.Attention.forward"
    assert list(get_local.cache) == [key]
    assert get_local.cache[key] == []
    assert isinstance(get_local.cache[key], list)
    assert function.__qualname__ == key


def test_a_method_of_a_module_has_its_short_key() -> None:
    with get_local.patch(Attention.forward, "attn"):
        assert Attention().forward(1) == 3
    assert dict(get_local.cache) == {"Attention.forward": [[1, 2]]}


def test_one_entry_a_call_in_call_order_over_instances() -> None:
    get_local.activate()

    class Block:
        def __init__(self, number: int) -> None:
            self.number = number

        @get_local("attn")
        def forward(self, x: int) -> int:
            attn = (self.number, x)
            return x + 1

    blocks = [Block(number) for number in range(12)]
    x = 0
    for block in blocks:
        x = block.forward(x)
    assert get_local.cache["Block.forward"] == [(i, i) for i in range(12)]


def test_clear_keeps_the_keys_and_old_lists_keep_their_values() -> None:
    get_local.activate()
    function = get_local("attn")(make_method())
    function(None, 1)
    held = get_local.cache["forward"]
    get_local.clear()
    assert held == [[1, 2]]
    assert get_local.cache["forward"] == []
    assert get_local.cache["forward"] is not held
    function(None, 5)
    assert held == [[1, 2]]
    assert get_local.cache["forward"] == [[5, 6]]


def test_an_exception_appends_nothing() -> None:
    get_local.activate()

    @get_local("attn")
    def divide(x: int) -> float:
        attn = [x]
        return attn[0] / x

    divide(1)
    with pytest.raises(ZeroDivisionError):
        divide(0)
    divide(2)
    assert get_local.cache["divide"] == [[1], [2]]


def test_after_deactivate_nothing_is_captured_and_what_was_stays() -> None:
    function = get_local("attn")(make_method())
    code = function.__code__
    get_local.activate()
    assert get_local.is_activate is True
    assert function.__code__ is not code
    function(None, 1)
    get_local.deactivate()
    assert get_local.is_activate is False
    assert function.__code__ is code
    function(None, 2)
    assert get_local.cache["forward"] == [[1, 2]]


def test_activating_twice_is_activating_once() -> None:
    function = get_local("attn")(make_method())
    code = function.__code__
    get_local.activate()
    get_local.activate()
    function(None, 1)
    assert get_local.cache["forward"] == [[1, 2]]
    get_local.deactivate()
    assert function.__code__ is code
    get_local.deactivate()
    assert function.__code__ is code


def test_activating_again_goes_on_with_the_same_list() -> None:
    function = get_local("attn")(make_method())
    for number in (1, 2):
        get_local.activate()
        function(None, number)
        get_local.deactivate()
    assert get_local.cache["forward"] == [[1, 2], [2, 3]]


def test_several_names_have_a_key_each() -> None:
    get_local.activate()

    @get_local("q", "k")
    def attend(x: int) -> int:
        q, k = x, x * 10
        return q + k

    attend(1)
    attend(2)
    names = [key.rpartition(".<locals>.")[2] for key in get_local.cache]
    assert names == ["attend.q", "attend.k"]
    assert get_local.cache["attend.q"] == [1, 2]
    assert get_local.cache["attend.k"] == [10, 20]


def test_one_name_asked_for_twice_is_recorded_once() -> None:
    get_local.activate()

    @get_local("q", "q")
    @get_local("q")
    def attend(x: int) -> int:
        q = x
        return q

    attend(1)
    assert get_local.cache["attend"] == [1]


def test_a_name_unbound_on_some_calls_has_entries_of_the_others() -> None:
    get_local.activate()

    @get_local("q", "k")
    def attend(x: int) -> None:
        k = x
        if x > 1:
            q = x
            del x, q
            q = k

    for x in (1, 2, 3):
        attend(x)
    assert get_local.cache["attend.q"] == [2, 3]
    assert get_local.cache["attend.k"] == [1, 2, 3]
    assert UNBOUND not in get_local.cache["attend.q"]


def test_recursion_records_the_innermost_call_first() -> None:
    get_local.activate()

    @get_local("n")
    def count_down(n: int) -> int:
        return n and count_down(n - 1)

    count_down(3)
    assert get_local.cache["count_down"] == [0, 1, 2, 3]
