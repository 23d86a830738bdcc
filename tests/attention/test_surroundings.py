"""Reading a map is the same wherever it is done, and leaves no trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from tests.attention.reference import map_of, normal, random_call, whole_map
from visualizer.attention import (
    AttentionCall,
    AttentionMap,
    Mask,
    is_unobserved,
    unobserved,
    weights_of_rows,
)

PADDED = Mask(causal=1, keys=torch.tensor([True] * 7 + [False] * 2))


class Watching(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def rounded_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "none": nullcontext,
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "function mode": Watching,
    "rounded products": rounded_products,
}


def everything(m: AttentionMap) -> list[Any]:
    read = m.record.read()
    rows = [] if isinstance(read, torch.Tensor) else [weights_of_rows(read, [0, 3]), m.logsumexp()]
    return [
        m.weights(),
        m[0, 1, [1, 3]],
        m.row(2),
        m.column(3),
        *[block.weights for block in m.blocks(max_bytes=500)],
        m.entropy(),
        m.received(),
        *m.top_keys(2),
        m.mass(0),
        m.is_causal,
        *rows,
    ]


def compare(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=0, atol=1e-6)
        if not isinstance(one, bool):
            assert one.dtype == other.dtype


@pytest.mark.parametrize("name", list(SURROUNDINGS))
def test_the_same_everywhere(name: str) -> None:
    calls = [
        random_call(mask=PADDED),
        random_call(mask=PADDED, dtype=torch.bfloat16),
        random_call(softcap=2.0, mask=Mask(bias=normal(7, 9)), sinks=normal(4)),
    ]
    for call in calls:
        expected = everything(map_of(call))
        with SURROUNDINGS[name]() as mode:
            found = everything(map_of(call))
            mask = Mask.from_tensor(torch.ones(7, 7, dtype=torch.bool, device="cpu").tril())
            assert mask.kind == "causal"
        compare(found, expected)
        if isinstance(mode, Watching):
            heavy = ("softmax", "bmm", "logsumexp", "scaled_dot_product_attention", "matmul")
            assert not [each for each in mode.seen if getattr(each, "__name__", "") in heavy]


@pytest.mark.parametrize("name", list(SURROUNDINGS))
def test_weights_that_are_there_are_the_same_everywhere(name: str) -> None:
    weights = whole_map(random_call(mask=PADDED)).astype(np.float32)
    expected = everything(AttentionMap.from_weights(weights))
    with SURROUNDINGS[name]():
        compare(everything(AttentionMap.from_weights(weights)), expected)


def test_tensors_made_in_inference_mode() -> None:
    plain = random_call(mask=PADDED)
    with torch.inference_mode():
        call = AttentionCall(plain.query.clone(), plain.key.clone(), plain.scale, plain.mask)
        m = map_of(call)
        m.entropy(), m.logsumexp()
    assert call.query.is_inference()
    compare(everything(m), everything(map_of(plain)))


def test_a_generator_that_is_begun_in_inference_mode() -> None:
    m = map_of(random_call())
    with torch.inference_mode():
        blocks = m.blocks(max_bytes=500)
        first = next(blocks)
    assert not is_unobserved()
    found = np.concatenate([block.weights for block in (first, *blocks) if block.item == 0], 1)
    np.testing.assert_allclose(found, m[0], rtol=0, atol=1e-6)


def test_queries_that_need_gradients() -> None:
    plain = random_call(mask=PADDED, sinks=normal(4))
    assert plain.sinks is not None
    query, sinks = (t.clone().requires_grad_() for t in (plain.query, plain.sinks))
    leaf = plain.key.clone().requires_grad_()
    call = AttentionCall(query * 1, leaf * 1, plain.scale, plain.mask, sinks=sinks * 1)
    compare(everything(map_of(call)), everything(map_of(plain)))
    assert not weights_of_rows(call, [0]).requires_grad
    assert torch.is_grad_enabled()
    assert query.grad is None


def test_the_random_numbers_are_left_alone() -> None:
    m = map_of(random_call(mask=PADDED))
    before, there = torch.get_rng_state(), np.random.get_state()
    everything(m)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(np.random.get_state()) == repr(there)


def test_interceptors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of torch they wrap is called inside of `unobserved`."""
    told: list[bool] = []

    def wrapped(real: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            told.append(is_unobserved())
            return real(*args, **kwargs)

        return function

    for place, name in ((torch, "softmax"), (F, "softmax"), (F, "scaled_dot_product_attention")):
        monkeypatch.setattr(place, name, wrapped(getattr(place, name)))
    for call in (random_call(mask=PADDED), random_call(softcap=1.0)):
        everything(map_of(call))
    assert told
    assert all(told)
    torch.softmax(torch.zeros(2), -1)
    assert told[-1] is False


def test_devices_without_autocast() -> None:
    assert Mask.from_tensor(torch.ones(3, 3, device="meta")).kind == "bias"
    assert Mask.from_tensor(torch.ones(3, dtype=torch.bool, device="meta")).kind == "keys"


def test_unobserved_nests_and_is_of_its_thread() -> None:
    told: list[bool] = []
    with unobserved():
        with unobserved():
            pass
        assert is_unobserved()
        other = threading.Thread(target=lambda: told.append(is_unobserved()))
        other.start()
        other.join()
    with pytest.raises(KeyError), unobserved():
        raise KeyError
    assert told == [False]
    assert not is_unobserved()
    assert torch.is_grad_enabled()
