"""What a compiled graph lends: copied where it is small, and masks once for all layers."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from visualizer.attention.unobserved import unobserved

__all__ = ["are_small", "copy_tensors", "forget_parts", "keep_parts"]

_SMALL = 2**18
"""Bytes of a tensor up to which all are copied, so that the call may wait."""

_last: dict[tuple[int, int], Tensor] = {}
"""The last copy, by thread and place in the list, while a block is open. A graph writes to its
memory without a trace in `_version`, so it is the content that tells whether it is the same."""


def are_small(tensors: list[Tensor | None]) -> bool:
    """Tell whether query, key, value and output are so small that they had better be copied."""
    return len(tensors) == 4 and all(each is None or each.nbytes <= _SMALL for each in tensors)


def copy_tensors(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """Return copies; of heads that `repeat_heads` has repeated one each."""
    with unobserved():
        axes = [0 if tensor is None else tensor.dim() for tensor in tensors]
        is_repeated = [each == 5 and axes[0] == 4 for each in axes]
        return [
            None if tensor is None else (tensor[:, :, :1] if repeated else tensor).clone()
            for tensor, repeated in zip(tensors, is_repeated, strict=True)
        ]


def keep_parts(parts: list[Tensor | None]) -> list[Tensor | None]:
    """Return tensors with the same content, that stay as they are."""
    thread = threading.get_ident()
    return [
        None if part is None else _copy((thread, place), part) for place, part in enumerate(parts)
    ]


def forget_parts() -> None:
    """Let go of the last copies."""
    _last.clear()


def _copy(place: tuple[int, int], part: Tensor) -> Tensor:
    with unobserved(part.device.type):
        small = part.detach()
        for axis, stride in enumerate(small.stride()):
            if stride == 0:  # expanded along it
                small = small.narrow(axis, 0, min(1, small.shape[axis]))
        last = _last.get(place)
        if last is None or not _is_same(last, small):
            last = _last[place] = small.clone()
        return last.expand(part.shape)


def _is_same(last: Tensor, part: Tensor) -> bool:
    if last.shape != part.shape or last.dtype != part.dtype or last.device != part.device:
        return False
    return part.device.type == "cpu" and torch.equal(last, part)  # others would be waited for
