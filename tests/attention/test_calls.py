"""What a call keeps, refuses, and notices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.attention.reference import map_of, normal, random_call
from visualizer.attention import AttentionCall, Mask
from visualizer.errors import OutOfRangeError, OverwrittenError, ShapeError


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ((2, 4, 7, 8), (2, 4, 9, 7)),
        ((2, 4, 7, 8), (2, 3, 9, 8)),
        ((2, 4, 7, 8), (3, 4, 9, 8)),
        ((4, 7, 8), (4, 9, 8)),
        ((2, 4, 0, 8), (2, 4, 9, 8)),
    ],
)
def test_shapes_that_do_not_fit(query: Any, key: Any) -> None:
    with pytest.raises(ShapeError, match=r"expected \(batch, head, query, dim\)"):
        AttentionCall(torch.zeros(query), torch.zeros(key), 1.0)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"mask": Mask(keys=torch.ones(8, dtype=torch.bool))}, ShapeError, r"\(2, 1, 1, 9\)"),
        ({"mask": Mask(bias=torch.zeros(9, 7))}, ShapeError, r"bias.*\(2, 4, 7, 9\)"),
        ({"mask": Mask(spans=(torch.zeros(6).int(),) * 2)}, ShapeError, r"\(2, 4, 7\)"),
        ({"sinks": torch.zeros(3)}, ShapeError, "each of the 4 heads"),
        ({"softcap": 0.0}, OutOfRangeError, "softcap is 0.0"),
        ({"empty_rows": 1.0}, OutOfRangeError, "expected 0 or NaN"),
    ],
)
def test_options_that_do_not_fit(options: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        random_call(**options)


def test_whole_numbers_are_no_queries() -> None:
    whole = torch.zeros(1, 1, 2, 2, dtype=torch.long)
    with pytest.raises(ShapeError, match="expected floating point"):
        AttentionCall(whole, whole, 1.0)


def test_bytes_of_what_is_held() -> None:
    fused = normal(1, 4, 10, 24)
    query, key, _ = fused.split(8, -1)
    assert AttentionCall(query, key, 1.0).nbytes == fused.nbytes
    bias = normal(10, 10)
    call = AttentionCall(query, key, 1.0, Mask(bias=bias), sinks=normal(4))
    assert call.nbytes == fused.nbytes + bias.nbytes + 16
    one = normal(1, 1, 10, 8)
    assert AttentionCall(query.expand(5, -1, -1, -1), one, 1.0).nbytes == fused.nbytes + one.nbytes


PARTS = {
    "query": lambda call: call.query,
    "key": lambda call: call.key,
    "sinks": lambda call: call.sinks,
    "bias": lambda call: call.mask.bias,
}


@pytest.mark.parametrize("part", list(PARTS))
def test_writing_to_a_tensor_is_noticed(part: str) -> None:
    call = random_call(sinks=normal(4), mask=Mask(bias=normal(7, 9)))
    m = map_of(call)
    m.row(0)
    PARTS[part](call).detach()[..., 0] += 1
    for read in (
        m.weights,
        m.entropy,
        m.received,
        m.logsumexp,
        lambda: m[0, 0, 0],
        lambda: m.dtype,
    ):
        with pytest.raises(OverwrittenError, match="written to in place"):
            read()
    with pytest.raises(OverwrittenError, match=r"shape \(2, 4, 7, 9\)"):
        call.check_intact()


def test_writing_to_what_the_tensor_is_a_view_of_is_noticed() -> None:
    cache = normal(1, 2, 16, 8)
    call = AttentionCall(normal(1, 2, 3, 8), cache[:, :, :9].detach(), 1.0)
    call.check_intact()
    cache[:, :, 10] = 0
    with pytest.raises(OverwrittenError):
        call.check_intact()


def test_inference_tensors_can_not_tell() -> None:
    with torch.inference_mode():
        call = AttentionCall(normal(1, 2, 3, 8).clone(), normal(1, 2, 4, 8).clone(), 1.0)
        call.query.add_(1)
    call.check_intact()
    assert map_of(call).weights().shape == (1, 2, 3, 4)
