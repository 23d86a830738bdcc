"""Contenders that take a small tensor, or a module's output. They need torch."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from benchmarks._functions import get_local_contender
from benchmarks._timing import Contender, emptying, own_code

__all__ = ["BARE_TENSOR", "CLONE", "GET_LOCAL_TENSOR", "tensor_contenders"]

BARE_TENSOR = "bare function of a tensor"
CLONE = "detach().clone(), nothing else"
GET_LOCAL_TENSOR = "get_local, 4x4 tensor"


def _hold(x: torch.Tensor) -> torch.Tensor:
    y = x  # noqa: F841 - the local to be taken
    return x


def _clone(x: torch.Tensor) -> torch.Tensor:
    y = x
    y.detach().clone()
    return x


def _result_and_local(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = x
    return x, y


class _Trivial(nn.Module):
    def forward(self, x: int) -> int:
        y = x + 1
        return y * 2


def tensor_contenders(stack: ExitStack) -> list[Contender]:
    """Return the contenders; what they install is removed with the stack."""
    tensor = torch.rand(4, 4)
    return [
        Contender(BARE_TENSOR, own_code(_hold), tensor),
        Contender(CLONE, own_code(_clone), tensor, BARE_TENSOR),
        get_local_contender(stack, GET_LOCAL_TENSOR, _hold, tensor, BARE_TENSOR),
        _wrapper_design(tensor),
        Contender("bare module", _Trivial(), 20),
        _hooked(stack),
    ]


def _wrapper_design(tensor: torch.Tensor) -> Contender:
    target, cache = own_code(_result_and_local), {"key": list[object]()}

    @functools.wraps(target)
    def wrapper(*args: Any, **kwargs: Any) -> object:
        result, local = target(*args, **kwargs)
        cache["key"].append(local.detach().cpu().numpy())
        return result

    name = "wrapper design, 4x4 tensor"
    return Contender(name, wrapper, tensor, BARE_TENSOR, emptying(cache["key"]), values_per_call=1)


def _hooked(stack: ExitStack) -> Contender:
    module, values = _Trivial(), list[object]()

    def hook(module: nn.Module, arguments: object, output: object) -> None:
        values.append(output)

    stack.callback(module.register_forward_hook(hook).remove)
    return Contender(
        "register_forward_hook", module, 20, "bare module", emptying(values), values_per_call=1
    )
