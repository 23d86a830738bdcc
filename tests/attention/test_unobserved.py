"""`unobserved` switches off what is on, also where one block is in another."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from visualizer.attention.unobserved import is_unobserved, unobserved


class Sees(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} was seen")


class SeesOperators(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} was seen")


def check(x: torch.Tensor) -> None:
    with unobserved():
        assert is_unobserved()
        assert not torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert not (x + 1).requires_grad


def test_a_block_in_another_switches_off_what_was_switched_on_between() -> None:
    x = torch.ones(3, requires_grad=True)
    with unobserved():
        check(x)
        for mode in (
            torch.enable_grad(),
            torch.inference_mode(),
            torch.autocast("cpu", dtype=torch.bfloat16),
            SeesOperators(),
        ):
            with mode:
                check(x)
        assert is_unobserved()
    assert not is_unobserved()
    assert torch.is_grad_enabled()


def test_what_is_on_around_it_comes_back() -> None:
    x = torch.ones(3, requires_grad=True)
    with Sees(), torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            check(x)
            assert torch.is_autocast_enabled("cpu")
            assert torch.is_grad_enabled()
