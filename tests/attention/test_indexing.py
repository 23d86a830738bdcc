"""A map is indexed as numpy indexes the whole of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention.reference import map_of, random_call, whole_map
from visualizer.attention import AttentionMap, Mask
from visualizer.errors import OutOfRangeError

CALL = random_call(mask=Mask(causal=2))
WHOLE = whole_map(CALL)
MAPS = (map_of(CALL), AttentionMap.from_weights(WHOLE))


def slices(size: int) -> st.SearchStrategy[slice]:
    ends = st.none() | st.integers(-size - 3, size + 3)
    steps = st.none() | st.integers(-size - 1, size + 1).filter(bool)
    return st.builds(slice, ends, ends, steps)


def axis_index(size: int) -> st.SearchStrategy[Any]:
    return st.integers(-size, size - 1) | slices(size)


@st.composite
def basic(draw: st.DrawFn) -> Any:
    """Integers and slices for some axes, with an ellipsis or without."""
    given_ = [draw(axis_index(size)) for size in WHOLE.shape]
    left = draw(st.integers(0, 4))
    right = draw(st.integers(0, 4 - left))
    if draw(st.booleans()):
        return (*given_[:left], ..., *given_[4 - right :])
    return tuple(given_[:left])


@st.composite
def with_lists(draw: st.DrawFn) -> Any:
    """Lists of one length at some axes, among integers and slices."""
    length = draw(st.integers(0, 4))
    result: list[Any] = []
    for size in WHOLE.shape:
        numbers = st.lists(st.integers(-size, size - 1), min_size=length, max_size=length)
        arrays = numbers.map(lambda each: np.array(each, np.int64))
        result.append(draw(axis_index(size) | arrays))
    return tuple(result)


@settings(max_examples=150, deadline=None)
@given(basic() | with_lists())
def test_like_numpy(index: Any) -> None:
    for m in MAPS:
        found, expected = m[index], WHOLE[index]
        assert np.shape(found) == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "index",
    [
        3 % 2,
        np.int64(1),
        [1, 0, 1],
        np.array([True, False]),
        ([0, 1], [[0], [1]]),
        (..., [-1]),
        (0, 1, [], 2),
        (slice(None), torch.tensor([2, 0])),
        (slice(None), [True, False, True, False]),
        (0, np.int32(2), torch.tensor(3)),
    ],
    ids=str,
)
def test_other_kinds_of_indices(index: Any) -> None:
    plain = index if not isinstance(index, tuple) else tuple(map(_plain, index))
    found = MAPS[0][index]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, WHOLE[plain], rtol=0, atol=1e-6)


def _plain(part: Any) -> Any:
    if isinstance(part, torch.Tensor):
        return part.numpy()
    return np.intp([]) if isinstance(part, list) and not part else part


@pytest.mark.parametrize(
    "index",
    [
        2,
        (0, -5),
        (0, 0, 7),
        (..., 9),
        (0, [0, 4]),
        (0, [-5]),
        (0, 0, 0, 0, 0),
        (..., 0, ...),
        None,
        (0, None),
        True,
        1.5,
        "blocks",
        (0, [0.5]),
        (0, [True, False]),
        (0, slice(None, None, 0)),
        (0, slice("a", None)),
    ],
    ids=str,
)
def test_what_is_no_index(index: Any) -> None:
    for m in MAPS:
        with pytest.raises(OutOfRangeError):
            m[index]


def test_the_message_names_the_axis() -> None:
    with pytest.raises(OutOfRangeError, match=r"head 4 is out of range: the map has 4, 0 to 3"):
        MAPS[0][0, 4]
    with pytest.raises(IndexError, match="query 7 is out of range"):
        MAPS[0].row(7)
    with pytest.raises(ValueError, match="key -10 is out of range"):
        MAPS[0].column(-10)


@pytest.mark.parametrize("m", MAPS, ids=["call", "weights"])
@pytest.mark.parametrize("head", [None, 0, -1])
@pytest.mark.parametrize("item", [None, 1, -2])
def test_given_axes_are_dropped(m: AttentionMap, head: int | None, item: int | None) -> None:
    index = tuple(slice(None) if each is None else each for each in (item, head))
    some = {"head": head, "item": item}
    np.testing.assert_allclose(m.weights(**some), WHOLE[index], rtol=0, atol=1e-6)
    np.testing.assert_allclose(m.row(-2, **some), WHOLE[(*index, -2)], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        m.column(-2, **some), WHOLE[(*index, slice(None), -2)], rtol=0, atol=1e-6
    )


def test_items_can_be_gone_through() -> None:
    for m in MAPS:
        assert len(m) == len(list(m)) == 2
        np.testing.assert_allclose(list(m), WHOLE, rtol=0, atol=1e-6)


def test_as_an_array() -> None:
    for m in MAPS:
        assert np.asarray(m).dtype == m.dtype
        assert np.array(m, dtype=np.float16).dtype == np.float16
        np.testing.assert_allclose(m, WHOLE, rtol=0, atol=1e-6)
        assert (m.shape, m.ndim, m.size) == (WHOLE.shape, 4, WHOLE.size)
        assert m.nbytes == np.asarray(m).nbytes
    with pytest.raises(ValueError, match="can't return a view"):
        MAPS[0].__array__(copy=False)


def test_what_is_returned_is_the_callers() -> None:
    """Writing to it changes neither the map nor the array that it came from."""
    mine = WHOLE.copy()
    m = AttentionMap.from_weights(mine)
    for part in (m[0], m.weights(), m.row(0), m.column(0), np.asarray(m), next(m.blocks()).weights):
        part[...] = 7
    np.testing.assert_array_equal(mine, WHOLE)
    lse = MAPS[0].logsumexp()
    lse[...] = 7
    assert not (MAPS[0].logsumexp() == 7).any()
