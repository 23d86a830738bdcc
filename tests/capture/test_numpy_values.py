"""Snapshots of numpy arrays and of what converts itself to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.capture.conftest import Recorded
from visualizer import Reference, get_local
from visualizer._capture.snapshot import nbytes, snapshot

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint64", "float16", "float32", "float64", "complex64", "U3", "S2", "M8[s]"],
)
def test_types_stay(dtype: str) -> None:
    value = np.zeros((2, 3), dtype)
    taken = snapshot(value)
    assert taken.dtype == value.dtype
    assert taken.shape == (2, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(6.0),
        lambda: np.arange(6.0).reshape(2, 3).T,
        lambda: np.arange(12.0)[::2],
        lambda: np.broadcast_to(np.arange(3.0), (4, 3)),
        lambda: np.array(5.0),
        lambda: np.empty((0, 3)),
        lambda: np.asfortranarray(np.ones((2, 3))),
    ],
)
def test_arrays_are_owned_and_writable(make: Callable[[], Any]) -> None:
    value = make()
    taken = snapshot(value)
    np.testing.assert_array_equal(taken, value)
    assert not np.shares_memory(taken, value)
    assert taken.flags.writeable
    assert taken.flags.owndata
    taken[...] = -1
    np.testing.assert_array_equal(value, make())


def test_changes_in_place_and_through_views_are_not_seen() -> None:
    get_local.activate()

    @get_local("attn")
    def attend(scores: Any) -> Any:
        attn = scores[1:]
        return attn

    scores = np.arange(4.0)
    view = attend(scores)
    view += 100
    scores[:] = -1
    np.testing.assert_array_equal(get_local.cache["attend"][0], [1, 2, 3])


def test_a_read_only_array_gives_a_writable_one() -> None:
    value = np.arange(3)
    value.flags.writeable = False
    snapshot(value)[0] = 7
    assert value[0] == 0


def test_numbers_stay_numbers() -> None:
    for value in (np.float32(1.5), np.int8(3), np.bool_(True), np.str_("a"), np.datetime64(0, "s")):
        taken = snapshot(value)
        assert type(taken) is type(value)
        assert taken == value


def test_a_structured_scalar_is_a_view_and_gets_copied() -> None:
    table = np.array([(1, 2.0), (3, 4.0)], dtype=[("n", int), ("x", float)])
    taken = snapshot(table[1])
    whole = snapshot(table)
    table["n"] = -1
    assert taken["n"] == 3
    assert whole["n"].tolist() == [1, 3]


def test_a_masked_array_keeps_its_mask() -> None:
    value = np.ma.array([1, 2, 3], mask=[False, True, False])
    taken = snapshot(value)
    value[0] = 9
    value.mask[2] = True
    assert isinstance(taken, np.ma.MaskedArray)
    assert taken.tolist() == [1, None, 3]


def test_an_object_array_is_copied_to_its_elements() -> None:
    value = np.empty(2, dtype=object)
    value[0], value[1] = [1], {"a": np.zeros(2)}
    taken = snapshot(value)
    value[0].append(2)
    value[1]["a"][:] = 5
    assert taken.dtype == object
    assert taken[0] == [1]
    assert taken[1]["a"].tolist() == [0, 0]


class Convertible:
    """What has `__array__`, with or without the argument `copy`, and what it gives."""

    def __init__(self) -> None:
        self.data = np.arange(3.0)


class WithCopy(Convertible):
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self.data, dtype, copy=copy)


class IgnoringCopy(Convertible):
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.data


class WithoutCopy(Convertible):
    def __array__(self, dtype: Any = None) -> Any:
        return self.data


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize("kind", [WithCopy, IgnoringCopy, WithoutCopy])
def test_what_converts_itself_becomes_an_array_of_our_own(kind: type[Convertible]) -> None:
    value = kind()
    taken = snapshot(value)
    assert type(taken) is np.ndarray
    assert not np.shares_memory(taken, value.data)
    value.data[:] = 9
    assert taken.tolist() == [0, 1, 2]


def test_a_class_with_array_is_a_class() -> None:
    assert snapshot(WithCopy) is WithCopy


def test_a_conversion_that_raises_is_told_on_reading(captured_warnings: Recorded) -> None:
    class Unwilling:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise ValueError("not an array today")

    get_local.activate()

    @get_local("attn")
    def attend() -> int:
        attn = Unwilling()
        return 1

    assert attend() == 1
    assert get_local.cache["attend"] == []
    assert "ValueError: not an array today" in str(captured_warnings[0].message)


def test_a_matrix_becomes_an_array_and_a_memmap_leaves_its_file(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "values", dtype=np.float32, mode="w+", shape=(3,))
    taken = snapshot(mapped)
    mapped[:] = 4
    assert type(taken) is np.ndarray
    assert taken.tolist() == [0, 0, 0]


def test_arrays_within_structures() -> None:
    value = {"q": np.zeros(2), "layers": [np.ones(2), (np.ones(1), None)]}
    taken = snapshot(value)
    value["q"][:] = 5
    value["layers"][0][:] = 5
    value["layers"][1][0][:] = 5
    assert taken["q"].tolist() == [0, 0]
    assert taken["layers"][0].tolist() == [1, 1]
    assert taken["layers"][1][0].tolist() == [1]
    assert taken["layers"][1][1] is None


def test_a_shared_array_stays_shared() -> None:
    part = np.zeros(2)
    taken = snapshot([part, part])
    assert taken[0] is taken[1]
    assert taken[0] is not part


def test_sizes() -> None:
    array, second, third = np.zeros((3, 4), np.float32).copy()
    assert nbytes(array) == 16
    assert nbytes({"a": array, "b": [second, (third, 1)]}) == 48
    assert nbytes(Reference(array)) == 0
    assert nbytes("text") == 0


def test_what_is_shared_is_counted_once() -> None:
    array = np.zeros(4, np.float32)
    circular: list[Any] = [array, [array]]
    circular.append(circular)
    assert nbytes(circular) == 16


def test_the_repr_tells_type_and_shape() -> None:
    get_local.activate()

    @get_local("attn")
    def attend() -> None:
        attn = np.zeros((1, 6, 197, 197), np.float16)

    attend()
    assert "1 entry of 'attn', the last float16 (1, 6, 197, 197)" in repr(get_local.cache)
