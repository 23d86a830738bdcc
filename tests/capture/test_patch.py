"""`get_local.patch`: capture from functions that nobody decorated."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.capture.conftest import WriteModule
from visualizer import get_local
from visualizer.errors import TargetNotFoundError, UnknownLocalError

LIBRARY = """
class Attention:
    def forward(self, x):
        q = x * 10
        attn = [x]
        return x + 1

    @staticmethod
    def scale(x):
        factor = 2
        return x * factor

    class Inner:
        def forward(self, x):
            attn = -x
            return attn

def attend(x):
    attn = x
    return attn
"""


@pytest.fixture
def library(write_module: WriteModule) -> ModuleType:
    return write_module("some_library", LIBRARY)


def test_it_works_inactive_until_removed(library: ModuleType) -> None:
    code = library.attend.__code__
    handle = get_local.patch("some_library:attend", "attn")
    assert not get_local.is_activate
    assert get_local.cache["attend"] == []
    library.attend(1)
    handle.remove()
    assert library.attend.__code__ is code
    library.attend(2)
    assert get_local.cache["attend"] == [1]


def test_removing_twice_is_removing_once(library: ModuleType) -> None:
    first = get_local.patch(library.attend, "attn")
    second = get_local.patch(library.attend, "attn")
    first.remove()
    first.remove()
    library.attend(1)
    second.remove()
    library.attend(2)
    assert get_local.cache["attend"] == [1]


def test_a_block_ends_it_and_gives_the_handle(library: ModuleType) -> None:
    code = library.attend.__code__
    with pytest.raises(RuntimeError, match="inside"), get_local.patch(library.attend, "attn") as p:
        assert type(p).__name__ == "Patch"
        library.attend(1)
        raise RuntimeError("inside")
    assert library.attend.__code__ is code
    assert get_local.cache["attend"] == [1]


def test_repr_tells_the_state(library: ModuleType) -> None:
    patch = get_local.patch(library.Attention.forward, "q", "attn")
    assert repr(patch) == "<patch of q, attn in Attention.forward, in place>"
    patch.remove()
    assert repr(patch) == "<patch of q, attn in Attention.forward, removed>"


def test_targets_by_string(library: ModuleType) -> None:
    with (
        get_local.patch("some_library:Attention.forward", "attn"),
        get_local.patch("some_library:Attention.Inner.forward", "attn"),
        get_local.patch("some_library:Attention.scale", "factor"),
    ):
        assert library.Attention().forward(1) == 2
        assert library.Attention.Inner().forward(1) == -1
        assert library.Attention.scale(3) == 6
    assert dict(get_local.cache) == {
        "Attention.forward": [[1]],
        "Attention.Inner.forward": [-1],
        "Attention.scale": [2],
    }


def test_a_method_of_an_instance_is_that_of_its_class(library: ModuleType) -> None:
    with get_local.patch(library.Attention().forward, "attn"):
        library.Attention().forward(4)
    assert get_local.cache["Attention.forward"] == [[4]]


def test_activate_and_deactivate_leave_patches_alone(library: ModuleType) -> None:
    with get_local.patch(library.attend, "attn"):
        get_local.activate()
        library.attend(1)
        get_local.deactivate()
        library.attend(2)
    assert get_local.cache["attend"] == [1, 2]


def test_a_decorated_variable_that_is_patched_too_is_recorded_once(library: ModuleType) -> None:
    get_local("attn")(library.Attention.forward)
    get_local.activate()
    code = library.Attention.forward.__code__
    with get_local.patch(library.Attention.forward, "attn"):
        library.Attention().forward(1)
        assert get_local.cache["Attention.forward"] == [[1]]
        get_local.deactivate()
        library.Attention().forward(2)
    library.Attention().forward(3)
    assert library.Attention.forward.__code__ is not code
    assert get_local.cache["Attention.forward"] == [[1], [2]]


def test_another_variable_of_a_decorated_function(library: ModuleType) -> None:
    get_local("attn")(library.Attention.forward)
    get_local.activate()
    library.Attention().forward(1)
    with get_local.patch(library.Attention.forward, "q"):
        library.Attention().forward(2)
    library.Attention().forward(3)
    assert get_local.cache["Attention.forward.attn"] == [[1], [2], [3]]
    assert get_local.cache["Attention.forward.q"] == [20]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("some_library:Attention.forwards", "Did you mean 'forward'"),
        ("some_library:attend.attn", "some_library:attend has no attribute 'attn'"),
        ("some_library.attend", "does not say where the module ends"),
        ("no_such_library:attend", "there is no module 'no_such_library'"),
    ],
)
def test_targets_that_do_not_resolve(library: ModuleType, target: str, message: str) -> None:
    with pytest.raises(TargetNotFoundError, match=message):
        get_local.patch(target, "attn")
    assert len(get_local.cache) == 0


def test_an_unknown_name_changes_nothing(library: ModuleType) -> None:
    code = library.attend.__code__
    with pytest.raises(UnknownLocalError, match="Did you mean 'attn'"):
        get_local.patch(library.attend, "atn")
    assert library.attend.__code__ is code
    assert len(get_local.cache) == 0
