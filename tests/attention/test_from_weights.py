"""Maps of weights that are there behave as those of calls."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from tests.attention import reference
from tests.attention.reference import Record, map_of, random_call, whole_map
from visualizer import analysis
from visualizer.attention import AttentionMap, Mask
from visualizer.errors import MapRefusedError, NotWeightsError, OutOfRangeError, ShapeError

CALL = random_call(queries=9, mask=Mask(causal=0))
WHOLE = whole_map(CALL)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_the_same_as_of_a_call(dtype: Any) -> None:
    m, other = AttentionMap.from_weights(WHOLE.astype(dtype)), map_of(CALL)
    limit = {"rtol": 0, "atol": 5e-3 if dtype == np.float16 else 1e-5}
    assert m.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert m.shape == other.shape
    assert m.is_causal is other.is_causal is True
    np.testing.assert_allclose(m.weights(), other.weights(), **limit)
    np.testing.assert_allclose(m.entropy(), other.entropy(), **limit)
    np.testing.assert_allclose(m.received(), other.received(), **limit)
    np.testing.assert_allclose(m.top_keys(4)[1], other.top_keys(4)[1], **limit)
    np.testing.assert_allclose(m.distance(3), other.distance(3), **limit)
    np.testing.assert_allclose(m.mass([0, 3]), other.mass([0, 3]), **limit)
    np.testing.assert_allclose(m.column(3), other.column(3), **limit)
    np.testing.assert_allclose(m.row(3), other.row(3), **limit)


def test_the_same_as_analysis() -> None:
    m = AttentionMap.from_weights(WHOLE)
    np.testing.assert_allclose(m.entropy(), analysis.entropy(WHOLE), rtol=0, atol=1e-12)
    np.testing.assert_allclose(m.distance(3), analysis.attention_distance(WHOLE, 3), atol=1e-12)
    np.testing.assert_allclose(m.mass(0), analysis.mass(WHOLE, 0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "values",
    [
        WHOLE[0, 0],
        WHOLE[0].tolist(),
        torch.from_numpy(WHOLE[:1]),
        torch.from_numpy(WHOLE).bfloat16(),
        np.eye(4, dtype=int),
        np.eye(4, dtype=bool),
        WHOLE[..., ::-1],
        np.asfortranarray(WHOLE),
        WHOLE.astype(">f4"),
        np.broadcast_to(np.float32(0.25), (4, 4)),
    ],
    ids=range(10),
)
def test_what_may_be_given(values: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = AttentionMap.from_weights(values)
        found = np.asarray(m)
    expected = values.double().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    np.testing.assert_allclose(found, expected.reshape((1,) * (4 - expected.ndim) + expected.shape))
    assert found.dtype in (np.float32, np.float64)


def wrong(change: Any) -> Any:
    values = WHOLE.copy()
    values[1, 2, 5] = change(values[1, 2, 5])
    return values


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (wrong(lambda row: row * 1.03), r"\[1, 2, 5\] sums to 1.03"),
        (wrong(lambda row: row * 0), r"\[1, 2, 5\] sums to 0"),
        (wrong(lambda row: row * math.nan), r"NaN or infinity, in the row \[1, 2, 5\]"),
        (wrong(lambda row: -row), "negative values"),
    ],
    ids=["sum", "zeros", "NaN", "negative"],
)
def test_what_are_no_weights(values: Any, says: str) -> None:
    with pytest.raises(NotWeightsError, match=says):
        AttentionMap.from_weights(values)


@pytest.mark.parametrize(
    "values", [[1.0], np.ones((1, 1, 1, 1, 1)), np.ones((3, 0)), [[1.0], [0.5, 0.5]], ["a"]]
)
def test_what_is_no_map(values: Any) -> None:
    with pytest.raises(ShapeError):
        AttentionMap.from_weights(values)


def test_weights_have_no_logsumexp() -> None:
    with pytest.raises(MapRefusedError, match="no log-sum-exp"):
        AttentionMap.from_weights(WHOLE).logsumexp()


def test_a_record_may_hand_over_rows_without_weights() -> None:
    weights = torch.from_numpy(WHOLE.copy())
    weights[0, 1, 2] = 0
    weights[1, 0, 3] = math.nan
    m = AttentionMap(Record(weights))
    expected = reference.entropy(weights.numpy())
    np.testing.assert_allclose(m.entropy(), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(m.received(), reference.received(weights.numpy()), atol=1e-9)


def test_what_is_known_of_a_map() -> None:
    m = map_of(CALL)
    assert repr(m) == "<AttentionMap 2×4×9×9, 'blocks.3.attn', layer 3, sdpa, confirmed>"
    known = (m.module_path, m.layer, m.call, m.step, m.source, m.confirmed)
    assert known == ("blocks.3.attn", 3, 0, 0, "sdpa", True)
    assert repr(map_of(CALL, confirmed=False)).endswith("refuted>")
    m = AttentionMap.from_weights(WHOLE, module_path="a.b", layer=1)
    assert repr(m) == "<AttentionMap 2×4×9×9, 'a.b', layer 1, array, not confirmed>"
    assert repr(AttentionMap.from_weights([[1.0]])).startswith("<AttentionMap 1×1×1×1, array")


def test_a_record_that_refuses() -> None:
    class Refusing(Record):
        def read(self) -> Any:
            raise MapRefusedError("the map of 'x' disagrees with the model's output")

    m = AttentionMap(Refusing(CALL))
    assert m.shape == (2, 4, 9, 9)
    for ask in (m.weights, m.entropy, lambda: m[0], lambda: m.row(0), lambda: m.column(0)):
        with pytest.raises(MapRefusedError, match="disagrees"):
            ask()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"grid": 4}, ShapeError),
        ({"grid": (3, 0)}, ShapeError),
        ({"grid": "3"}, ShapeError),
        ({"prefix_tokens": 9}, OutOfRangeError),
        ({"prefix_tokens": -1}, OutOfRangeError),
    ],
)
def test_grids_that_do_not_fit(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        map_of(CALL).distance(**options)
    if error is ShapeError:
        with pytest.raises(ShapeError, match="as many queries as keys"):
            map_of(random_call()).distance()


@pytest.mark.parametrize("keys", [9, -10, None, ..., True, [0.5], [True, False]])
def test_keys_that_do_not_exist(keys: Any) -> None:
    with pytest.raises(OutOfRangeError):
        map_of(CALL).mass(keys)
