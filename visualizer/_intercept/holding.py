"""Tensors of the program, kept by reference where that is safe, copied where it is not."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from visualizer.attention import Mask
from visualizer.errors import OverwrittenError

__all__ = ["Kept", "hold", "hold_mask", "is_cache", "keep", "pins_more", "why_no_value"]

_SLACK = 1.05
"""How much larger than a tensor its storage may be before a copy is the cheaper thing to keep."""


def hold(tensor: Tensor, *, copy: bool = False) -> Tensor:
    """Return a tensor that stays readable, without its autograd graph.

    It is the program's own memory, and its `_version` tells whether that was written to. It is a
    copy where there is no `_version` (inference mode) and where the storage is much larger than
    the tensor, as with a part of a fused projection, which would keep the rest alive. And where it
    is asked for, as for the keys of a cache, which is written to in place.
    """
    kept = tensor.detach()
    if copy or kept.is_inference():
        return kept.clone()
    return kept.clone() if pins_more(kept) else kept


def pins_more(tensor: Tensor | None) -> bool:
    """Tell whether a tensor keeps much more memory alive than it has itself."""
    if tensor is None:
        return False
    return tensor.untyped_storage().nbytes() > _SLACK * tensor.nbytes + 64


def is_cache(query: Tensor, key: Tensor) -> bool:
    """Tell whether keys seem to be a cache's own memory, which the next step writes to.

    There are more of them than queries, or they were written to before. Shapes `(…, token, dim)`.
    """
    if key.shape[-2] > query.shape[-2]:
        return True
    return not key.is_inference() and key._version > 0


def hold_mask(mask: Mask) -> Mask:
    """Return a mask whose tensors stay readable."""
    if not mask.tensors():
        return mask
    keys, visible, bias = (
        None if part is None else hold(part) for part in (mask.keys, mask.visible, mask.bias)
    )
    return replace(mask, keys=keys, visible=visible, bias=bias)


class Kept:
    """Tensors kept by reference, that tell when they were written to.

    Args:
        tensors: As `hold` returned them.
    """

    __slots__ = ("_versions", "tensors")

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors
        self._versions = [None if t.is_inference() else t._version for t in tensors]

    def read(self) -> tuple[Tensor, ...]:
        """Return them.

        Raises:
            OverwrittenError: The program has written to one since.
        """
        for tensor, version in zip(self.tensors, self._versions, strict=True):
            if version is not None and tensor._version != version:
                raise OverwrittenError(
                    f"the program has written into a tensor of shape {tuple(tensor.shape)} since "
                    "it was kept by reference, so the attention map can't be rebuilt. Capture with "
                    "keep='rows', or read the map before that"
                )
        return self.tensors


def keep(*tensors: Tensor, copy: bool = False) -> Kept:
    """Hold several tensors."""
    return Kept(*(hold(tensor, copy=copy) for tensor in tensors))


def why_no_value(*tensors: Tensor | None) -> str | None:
    """Say why tensors can't be kept: they stand for values that are not there yet. Or None."""
    for tensor in tensors:
        if tensor is None:
            continue
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return "it ran under torch.func (vmap, grad), where a tensor stands for others"
        if type(tensor).__name__ in {"FakeTensor", "FunctionalTensor"} or tensor.is_meta:
            return "its tensors have no values (meta device, or traced)"
    return None
