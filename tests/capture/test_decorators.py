"""`get_local` above and below other decorators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from visualizer import get_local
from visualizer.errors import UnknownLocalError


def doubling(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        outcome = function(*args, **kwargs)
        return 2 * outcome

    return wrapper


def test_stacked_get_locals_are_several_names() -> None:
    get_local.activate()

    @get_local("q")
    @get_local("k")
    def attend(x: int) -> int:
        q, k = x, x * 10
        return q + k

    assert attend(1) == 11
    assert get_local.cache["attend.q"] == [1]
    assert get_local.cache["attend.k"] == [10]


def test_below_a_wrapper() -> None:
    get_local.activate()

    @doubling
    @get_local("attn")
    def attend(x: int) -> int:
        attn = x + 1
        return attn

    assert attend(1) == 4
    assert get_local.cache["attend"] == [2]


def test_above_a_wrapper() -> None:
    get_local.activate()

    @get_local("attn")
    @doubling
    def attend(x: int) -> int:
        attn = x + 1
        return attn

    assert attend(1) == 4
    assert attend.__wrapped__(1) == 2
    assert get_local.cache["attend"] == [2, 2]


def test_a_name_of_the_wrapper_alone_is_refused_and_says_so() -> None:
    with pytest.raises(UnknownLocalError, match="The wrapper around it has one"):

        @get_local("outcome")
        @doubling
        def attend(x: int) -> int:
            return x


def make_holder(above: bool) -> type:
    """Return a class with a static method, a class method and a property, all decorated."""
    one, two = (get_local("attn"), lambda f: f) if above else (lambda f: f, get_local("attn"))

    class Holder:
        @one
        @staticmethod
        @two
        def static(x: int) -> int:
            attn = x + 1
            return attn * 2

        @one
        @classmethod
        @two
        def of_class(cls, x: int) -> str:
            attn = x + 2
            return cls.__name__

        @one
        @property
        @two
        def size(self) -> int:
            attn = 3
            return attn * 2

        @one
        @functools.cached_property
        @two
        def once(self) -> int:
            attn = 4
            return attn * 2

    return Holder


@pytest.mark.parametrize("above", [True, False])
def test_descriptors(above: bool) -> None:
    get_local.activate()
    holder: Any = make_holder(above)
    instance = holder()
    assert [instance.static(0), holder.static(1)] == [2, 4]
    assert [instance.of_class(0), holder.of_class(1)] == ["Holder", "Holder"]
    assert [instance.size, instance.once, instance.once] == [6, 8, 8]
    assert get_local.cache["Holder.static"] == [1, 2]
    assert get_local.cache["Holder.of_class"] == [2, 3]
    assert get_local.cache["Holder.size"] == [3]
    assert get_local.cache["Holder.once"] == [4]


def test_a_descriptor_comes_back_as_it_is() -> None:
    def attend(x: int) -> int:
        attn = x
        return attn

    for given in (staticmethod(attend), classmethod(attend), property(attend)):
        assert get_local("attn")(given) is given


def test_lru_cache_captures_the_calls_that_are_made() -> None:
    get_local.activate()

    @get_local("attn")
    @functools.lru_cache
    def attend(x: int) -> int:
        attn = x
        return attn

    assert [attend(1), attend(1), attend(2)] == [1, 1, 2]
    assert get_local.cache["attend"] == [1, 2]


def test_property_getter_and_setter_with_one_variable() -> None:
    get_local.activate()

    class Scale:
        @property
        @get_local("value")
        def scale(self) -> int:
            value = self._scale
            return value

        @scale.setter
        @get_local("value")
        def scale(self, given: int) -> None:
            value = given * 10
            self._scale = value

    thing = Scale()
    thing.scale = 1
    thing.scale = 2
    assert thing.scale == 20
    keys = sorted(get_local.cache, key=lambda key: int(key.rpartition("@")[2]))
    names = [key.rpartition(".<locals>.")[2].partition("@")[0] for key in keys]
    assert names == ["Scale.scale"] * 2
    assert all(key.startswith(f"{__name__}:") for key in keys)
    assert [get_local.cache[key] for key in keys] == [[20], [10, 20]]


def test_a_lambda() -> None:
    get_local.activate()
    square = get_local("x")(lambda x: x * x)
    assert square(3) == 9
    assert get_local.cache["<lambda>"] == [3]


def test_a_private_name_in_its_source_spelling() -> None:
    get_local.activate()

    class Attention:
        @get_local("__attn")
        def forward(self, x: int) -> int:
            __attn = x
            return __attn

    assert Attention().forward(1) == 1
    assert get_local.cache["Attention.forward"] == [1]


def test_a_bound_method_and_super() -> None:
    class Base:
        def forward(self, x: int) -> int:
            return x

    class Child(Base):
        def forward(self, x: int) -> int:
            attn = super().forward(x) + 1
            return attn

    child = Child()
    get_local.activate()
    get_local("attn")(child.forward)
    assert child.forward(1) == 2
    assert Child().forward(2) == 3
    assert get_local.cache["Child.forward"] == [2, 3]
