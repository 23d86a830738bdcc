"""`get_local.cache`: how keys may be written, what it says, and old habits."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest

from tests.capture.conftest import WriteModule
from visualizer import get_local
from visualizer.errors import AmbiguousKeyError, UnknownKeyError

MODEL = """
from visualizer import get_local

class Attention:
    @get_local("q", "attn")
    def forward(self, x):
        q, attn = x, [x]
        return x

class Mlp:
    @get_local("hidden")
    def forward(self, x):
        hidden = x * 10
        return x
"""


@pytest.fixture
def model(write_module: WriteModule) -> ModuleType:
    get_local.activate()
    return write_module("some_model", MODEL)


@pytest.fixture
def two_models(model: ModuleType, write_module: WriteModule) -> tuple[ModuleType, ModuleType]:
    return model, write_module("another_model", MODEL)


class TestSpellings:
    @pytest.mark.parametrize(
        "key",
        [
            "Mlp.forward",
            "Mlp.forward.hidden",
            "some_model:Mlp.forward",
            "some_model:Mlp.forward.hidden",
            "forward.hidden",
            "hidden",
        ],
    )
    def test_one_variable(self, model: ModuleType, key: str) -> None:
        model.Mlp().forward(1)
        assert get_local.cache[key] == [10]
        assert key in get_local.cache
        assert get_local.cache.get(key) is get_local.cache["Mlp.forward"]

    @pytest.mark.parametrize(
        "key",
        [
            "Attention.forward.q",
            "some_model:Attention.forward.q",
            "forward.q",
            "q",
        ],
    )
    def test_several_variables(self, model: ModuleType, key: str) -> None:
        model.Attention().forward(1)
        assert get_local.cache[key] == [1]
        assert get_local.cache["Attention.forward.attn"] == [[1]]

    def test_what_is_shown(self, model: ModuleType) -> None:
        assert list(get_local.cache) == [
            "Attention.forward.q",
            "Attention.forward.attn",
            "Mlp.forward",
        ]

    def test_what_is_shown_of_two_modules(self, two_models: tuple[ModuleType, ModuleType]) -> None:
        for number, module in enumerate(two_models):
            module.Mlp().forward(number)
        assert get_local.cache["some_model:Mlp.forward"] == [0]
        assert get_local.cache["another_model:Mlp.forward.hidden"] == [10]
        assert {key.partition(":")[0] for key in get_local.cache} == {
            "some_model",
            "another_model",
        }

    def test_a_whole_key_is_preferred_to_the_end_of_another(self) -> None:
        namespace: dict[str, Any] = {"__name__": "notebook", "get_local": get_local}
        source = "@get_local('x')\ndef forward(x): return x"
        exec(f"{source}\nclass A:\n    f = None", namespace)
        nested = source.replace("\n", "\n    ").replace("x): return x", "self, x): return -x")
        exec(f"class A:\n    {nested}", namespace)
        get_local.activate()
        namespace["A"]().forward(1)
        namespace["forward"](2)
        assert get_local.cache["forward"] == [2]
        assert get_local.cache["A.forward"] == [1]


class TestKeysThatDoNotFit:
    def test_an_ambiguous_variable_lists_the_choices(self, model: ModuleType) -> None:
        with pytest.raises(AmbiguousKeyError) as raised:
            get_local.cache["Attention.forward"]
        assert isinstance(raised.value, KeyError)
        assert str(raised.value) == (
            "get_local.cache['Attention.forward'] fits more than one captured variable; write "
            "one of 'Attention.forward.q', 'Attention.forward.attn'."
        )
        assert "Attention.forward" not in get_local.cache

    def test_an_ambiguous_function_lists_the_modules(
        self, two_models: tuple[ModuleType, ModuleType]
    ) -> None:
        choices = "'some_model:Mlp.forward', 'another_model:Mlp.forward'"
        with pytest.raises(AmbiguousKeyError, match=f"write one of {choices}"):
            get_local.cache["Mlp.forward"]

    def test_the_end_of_two_names_is_ambiguous(self, model: ModuleType) -> None:
        with pytest.raises(AmbiguousKeyError, match=r"'Attention.forward.q', .*'Mlp.forward'"):
            get_local.cache["forward"]

    def test_an_unknown_key_names_the_nearest(self, model: ModuleType) -> None:
        with pytest.raises(UnknownKeyError) as raised:
            get_local.cache["Mpl.forward"]
        assert isinstance(raised.value, KeyError)
        assert str(raised.value) == (
            "get_local.cache has no key 'Mpl.forward'; it has 'Attention.forward.q', "
            "'Attention.forward.attn', 'Mlp.forward'. Did you mean 'Mlp.forward'?"
        )

    @pytest.mark.parametrize("key", ["nothing_like_it_at_all", 0, None])
    def test_a_key_that_is_near_to_none(self, model: ModuleType, key: Any) -> None:
        with pytest.raises(UnknownKeyError, match=re.escape(f"has no key {key!r}; it has ")):
            get_local.cache[key]
        assert key not in get_local.cache
        assert get_local.cache.get(key, "default") == "default"

    def test_inactive_and_nothing_captured(self) -> None:
        with pytest.raises(UnknownKeyError) as raised:
            get_local.cache["Attention.forward"]
        assert str(raised.value) == (
            "get_local.cache has no key 'Attention.forward': get_local is not active; call "
            "get_local.activate() before the model runs."
        )

    def test_active_and_nothing_decorated(self) -> None:
        get_local.activate()
        with pytest.raises(UnknownKeyError, match="no function is decorated; put @get_local"):
            get_local.cache["Attention.forward"]


class TestWhatItSays:
    def test_not_active(self) -> None:
        assert repr(get_local.cache) == (
            "<get_local.cache, empty: get_local is not active; call get_local.activate() before "
            "the model runs>"
        )

    def test_nothing_decorated(self) -> None:
        get_local.activate()
        assert repr(get_local.cache) == (
            "<get_local.cache, empty: no function is decorated; put @get_local('attn') on one, or "
            "name one with get_local.patch('package.module:Class.forward', 'attn')>"
        )

    def test_entries(self, model: ModuleType) -> None:
        model.Mlp().forward(1)
        model.Attention().forward(2)
        model.Attention().forward(3)
        assert "  'Mlp.forward': 1 entry of 'hidden', the last int\n" in repr(get_local.cache)
        line = "  'Attention.forward.attn': 2 entries of 'attn', the last list\n"
        assert line in repr(get_local.cache)

    def test_never_called(self, model: ModuleType) -> None:
        assert (
            "'Mlp.forward': empty: Mlp.forward() has not returned since get_local was activated "
            "or cleared. Did the model run, and as Python?"
        ) in repr(get_local.cache)

    def test_not_active_any_more(self, model: ModuleType) -> None:
        get_local.deactivate()
        expected = "get_local is not active; call get_local.activate(), then run Mlp.forward()."
        assert f"'Mlp.forward': empty: {expected}" in repr(get_local.cache)
        with pytest.raises(IndexError) as raised:
            get_local.cache["Mlp.forward"][0]
        assert str(raised.value) == f"nothing was captured: {expected}"

    def test_an_index_into_an_empty_list_explains(self, model: ModuleType) -> None:
        for index in (0, -1):
            with pytest.raises(IndexError, match=r"nothing was captured: Mlp.forward\(\) has not"):
                get_local.cache["Mlp.forward"][index]
        assert get_local.cache["Mlp.forward"][:3] == []

    def test_an_index_beyond_the_end_is_an_ordinary_error(self, model: ModuleType) -> None:
        model.Mlp().forward(1)
        with pytest.raises(IndexError, match="^list index out of range$"):
            get_local.cache["Mlp.forward"][1]


class TestOldHabits:
    def test_is_activate_false_deactivates(self, model: ModuleType) -> None:
        get_local.is_activate = False
        model.Mlp().forward(1)
        assert get_local.cache["Mlp.forward"] == []
        get_local.is_activate = True
        model.Mlp().forward(2)
        assert get_local.cache["Mlp.forward"] == [20]

    @pytest.mark.parametrize("emptied", [{}, []])
    def test_an_empty_cache_clears(self, model: ModuleType, emptied: Any) -> None:
        model.Mlp().forward(1)
        held = get_local.cache["Mlp.forward"]
        get_local.cache = emptied
        assert held == [10]
        assert get_local.cache["Mlp.forward"] == []
        model.Mlp().forward(2)
        assert get_local.cache["Mlp.forward"] == [20]

    def test_a_filled_cache_is_refused(self, model: ModuleType) -> None:
        model.Mlp().forward(1)
        with pytest.raises(TypeError, match=r"can't be replaced, .* get_local.clear\(\) empties"):
            get_local.cache = {"Mlp.forward": []}
        assert get_local.cache["Mlp.forward"] == [10]

    def test_pop_gives_the_values_and_keeps_the_key(self, model: ModuleType) -> None:
        model.Mlp().forward(1)
        assert get_local.cache.pop("Mlp.forward") == [10]
        assert get_local.cache["Mlp.forward"] == []
        model.Mlp().forward(2)
        assert get_local.cache["Mlp.forward"] == [20]

    def test_pop_of_an_unknown_key(self, model: ModuleType) -> None:
        assert get_local.cache.pop("Nothing", None) is None
        with pytest.raises(UnknownKeyError):
            get_local.cache.pop("Nothing")

    def test_del_and_clear(self, model: ModuleType) -> None:
        for empty in (lambda: get_local.cache.__delitem__("Mlp.forward"), get_local.cache.clear):
            model.Mlp().forward(1)
            empty()
            assert get_local.cache["Mlp.forward"] == []

    def test_setting_a_key_is_refused(self, model: ModuleType) -> None:
        with pytest.raises(TypeError) as raised:
            get_local.cache["Mlp.forward"] = []
        assert str(raised.value) == (
            "get_local.cache is filled by the functions that run; 'Mlp.forward' can't be set. "
            "get_local.clear() or get_local.cache.pop(key) empties it, and dict(get_local.cache) "
            "is a copy of your own."
        )


class TestMapping:
    def test_protocol(self, model: ModuleType) -> None:
        model.Mlp().forward(1)
        cache = get_local.cache
        assert isinstance(cache, Mapping)
        assert len(cache) == 3
        assert list(cache.keys()) == list(cache)
        assert dict(cache.items())["Mlp.forward"] == [10]
        assert [10] in cache.values()
        assert cache.get("Nothing") is None

    def test_dict_is_a_copy(self, model: ModuleType) -> None:
        model.Mlp().forward(1)
        mine = dict(get_local.cache)
        mine["Mlp.forward"] = ["mine"]
        del mine["Attention.forward.q"]
        assert get_local.cache["Mlp.forward"] == [10]
        assert "Attention.forward.q" in get_local.cache
        assert get_local.cache != mine

    def test_it_is_one_object_all_the_time(self, model: ModuleType) -> None:
        cache = get_local.cache
        get_local.clear()
        assert get_local.cache is cache

    def test_lists_are_ordinary_lists(self, model: ModuleType) -> None:
        for x in (1, 2, 3):
            model.Mlp().forward(x)
        values = get_local.cache["Mlp.forward"]
        assert [*values] == [10, 20, 30] == list(values) == values[:] == values.copy()
        assert list(reversed(values)) == [30, 20, 10]
        assert repr(values) == "[10, 20, 30]"
        assert values + [40] == [10, 20, 30, 40]
        assert values.pop() == 30
        assert values.index(20) == 1
        assert len(values) == 2

    @pytest.mark.parametrize(
        "duplicate", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
    )
    def test_copies_of_lists_are_plain_lists(self, model: ModuleType, duplicate: Any) -> None:
        model.Mlp().forward(1)
        twin = duplicate(get_local.cache["Mlp.forward"])
        assert type(twin) is list
        assert twin == [10]
