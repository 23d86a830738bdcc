"""numpy's arrays come out of a store as they went in: bit by bit, and of the same type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.store.stored import bytes_of, put, through
from visualizer.store import Row, Skipped, Store, StoreWriter

PLAIN = "? b B h H i I l L q Q e f d g F D G".split()
OTHERS = ["S3", "U3", "V5", "M8[ns]", "M8[s]", "M8", "m8[D]", "m8[25us]"]
SWAPPED = [">f2", ">f4", ">f8", ">c8", ">c16", ">i2", ">u8", ">U3", ">M8[s]"]
STRUCTURED: dict[str, Any] = {
    "fields": [("a", "f4"), ("b", ">i2", (2, 3))],
    "aligned": np.dtype([("a", "i1"), ("b", "f8")], align=True),
    "gaps": np.dtype(
        {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [4, 12], "itemsize": 32}
    ),
    "overlapping": np.dtype({"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 0]}),
    "titles": [(("what it is", "a"), "f4"), ("b", "M8[ns]")],
    "nested": [("x", [("y", "f4"), ("z", "S2", (2,))])],
    "names": [("é", "f4"), ("class", "?")],
    "none": [],
}
TYPES = {**{name: name for name in [*PLAIN, *OTHERS, *SWAPPED]}, **STRUCTURED}
LAYOUTS: dict[str, Any] = {
    "C": lambda array: array,
    "F": lambda array: np.asfortranarray(array),
    "transposed": lambda array: array.transpose(1, 2, 0),
    "reversed": lambda array: array[::-1, :, ::-1],
    "sliced": lambda array: array[:, 1:, ::2],
    "expanded": lambda array: np.broadcast_to(array[:, :1], array.shape),
    "empty": lambda array: array[:, :0],
    "0-d": lambda array: array[0, 0, 0, ...],
}


def random_array(dtype: Any) -> np.ndarray[Any, Any]:
    """Return an array of random bits, where any bits mean something."""
    dtype = np.dtype(dtype)
    generator = np.random.default_rng(0)
    if dtype.itemsize == 0:
        return np.zeros((2, 3, 4), dtype)
    if dtype.kind in "gGU?":
        return generator.integers(0, 2, (2, 3, 4)).astype(dtype)
    bits = generator.integers(0, 256, 24 * dtype.itemsize, np.uint8)
    return bits.view(dtype).reshape(2, 3, 4)


def check_same(found: Any, expected: np.ndarray[Any, Any]) -> None:
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.dtype.isalignedstruct == expected.dtype.isalignedstruct
    if expected.dtype.names is None and expected.dtype.char not in "gG":
        assert found.tobytes() == expected.tobytes()
    else:  # between the fields, and in a long double's last bytes, there may be anything
        assert repr(found.tolist()) == repr(expected.tolist())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TYPES)
def test_every_type_in_every_layout(name: str, layout: str) -> None:
    array = LAYOUTS[layout](random_array(TYPES[name]))
    check_same(through(array), array)


@pytest.mark.parametrize("name", TYPES)
def test_scalars_keep_their_type(name: str) -> None:
    scalar = random_array(TYPES[name])[0, 1, 2]
    found = through([scalar])[0]
    assert isinstance(found, np.generic)
    check_same(np.asarray(found), np.asarray(scalar))


@pytest.mark.parametrize("value", [np.str_("a\0"), np.bytes_(b"a\0\0"), np.str_(""), np.bytes_()])
def test_texts_that_an_array_would_cut(value: Any) -> None:
    found = through([value])[0]
    assert type(found) is type(value)
    assert found == value
    assert len(found) == len(value)


@settings(max_examples=60, deadline=None)
@given(
    array=arrays.arrays(
        dtype=arrays.scalar_dtypes() | arrays.array_dtypes(),
        shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    turned=st.booleans(),
)
def test_any_array(array: np.ndarray[Any, Any], turned: bool) -> None:
    array = array.T if turned else array
    check_same(through(array), array)


@pytest.mark.parametrize("bits", [0x7F800001, 0xFFC12345, 0x7FC00000, 0x80000000, 0x3F800001])
def test_every_bit_of_a_float_is_kept(bits: int) -> None:
    array = np.array([bits], np.uint32).view(np.float32)
    assert through(array).view(np.uint32)[0] == bits


def test_bfloat16_takes_two_bytes(tmp_path: Path) -> None:
    """As `get_local` has it: widened to float32, with 16 bits that are always zero."""
    bits = np.random.default_rng(0).integers(0, 2**16, (3, 1000), np.uint32) << np.uint32(16)
    widened = bits.view(np.float32)
    store = put(tmp_path / "run", widened)
    assert bytes_of(store) == 6000
    check_same(store.read(store.rows[0]), widened)
    check_same(through(widened.T), widened.T)


@pytest.mark.parametrize("place", [0, 1023, 1024, 1025, 2**18 + 1023, 2**18 + 1024, 2**18 + 1999])
def test_one_float32_among_bfloat16_is_kept(place: int) -> None:
    array = np.ones(2**18 + 2000, np.float32)
    array[place] = 1 + 2**-20
    check_same(through(array), array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10**6, dtype=np.float32)[5:25],
        np.lib.stride_tricks.sliding_window_view(np.arange(20.0), 5)[::7],
        np.arange(10**6)[:: 10**5],
    ],
)
def test_a_slice_takes_its_own_bytes_only(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    store = put(tmp_path / "run", array)
    assert bytes_of(store) <= array.size * array.itemsize
    check_same(store.read(store.rows[0]), array)


def test_what_is_read_is_its_owners() -> None:
    found = through(np.arange(4.0))
    found[0] = 7
    assert found.tolist() == [7, 1, 2, 3]


def test_same_bytes_are_stored_once(tmp_path: Path) -> None:
    store = put(tmp_path / "run", *[np.full((100, 10), 0.1) for _ in range(5)])
    assert bytes_of(store) == 8000
    assert all(store.read(row)[3, 3] == 0.1 for row in store.rows)


@pytest.mark.parametrize("in_background", [False, True])
def test_the_value_is_that_of_the_moment_it_was_added(tmp_path: Path, in_background: bool) -> None:
    array = np.arange(1000.0)
    with StoreWriter(tmp_path / "run", is_in_background=in_background) as writer:
        for step in range(3):
            array += step
            writer.add(Row(kind="output", value={"of": array[::2], "all": array}))
        array[:] = -1
    store = Store(tmp_path / "run")
    for row, added in zip(store.rows, [0, 1, 3], strict=True):
        found = store.read(row)
        check_same(found["all"], np.arange(1000.0) + added)
        check_same(found["of"], np.arange(1000.0)[::2] + added)


def test_masked_arrays() -> None:
    array = np.ma.masked_array(np.arange(6.0).reshape(2, 3).T, np.eye(3, 2), fill_value=-7)
    found = through(array)
    assert isinstance(found, np.ma.MaskedArray)
    assert found.fill_value == -7
    check_same(found.data, array.data)
    check_same(np.ma.getmaskarray(found), np.ma.getmaskarray(array))


def test_parts_made_on_the_way_are_not_taken_for_one_another() -> None:
    """Python uses the addresses of what is gone again."""
    made = [np.ma.masked_array(np.full(3, number), np.eye(3)[number % 3]) for number in range(20)]
    for found, array in zip(through(made), made, strict=True):
        check_same(found.data, array.data)
        check_same(np.ma.getmaskarray(found), np.ma.getmaskarray(array))


def test_arrays_of_objects() -> None:
    array = np.empty((2, 2), object)
    array[0, 0], array[0, 1] = [1, 2], np.arange(3)
    array[1, 0], array[1, 1] = np.array(5), {"a": array}
    found = through(array)
    assert found.shape == (2, 2)
    assert found[0, 0] == [1, 2]
    check_same(found[0, 1], np.arange(3))
    check_same(found[1, 0], np.array(5))
    assert found[1, 1]["a"] is found
    single = np.empty((), object)
    single[()] = [1, 2]
    assert through(single)[()] == [1, 2]
    assert through(np.empty((0, 3), object)).shape == (0, 3)


@pytest.mark.parametrize("options", [{}, {"na_object": None}, {"na_object": float("nan")}])
def test_variable_strings(options: Any) -> None:
    dtype = np.dtypes.StringDType(**options)
    array = np.array([["a", "b\0"], ["é" * 100, ""]], dtype)
    if options:
        array[0, 0] = options["na_object"]
    found = through(array)
    assert found.dtype == array.dtype
    assert [[repr(item) for item in row] for row in found] == [
        [repr(item) for item in row] for row in array
    ]


class Named(np.ndarray[Any, Any]):
    """An array that is more."""


def test_subclasses_come_back_as_arrays() -> None:
    check_same(through(np.arange(4).view(Named)), np.arange(4))
    records = np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")])
    assert through(records).tolist() == [(1, 2.0)]


def test_fields_with_objects_are_skipped() -> None:
    array = np.zeros(2, [("a", "O"), ("b", "f4")])
    for value in (array, array[0]):
        found = through([value])[0]
        assert isinstance(found, Skipped)
        assert found.type_name.startswith("numpy:")
