"""FlexAttention's BlockMask: a function that says which keys are seen, written out."""

from __future__ import annotations

import importlib
import weakref
from typing import Any

from torch import Tensor

from visualizer.attention import Mask
from visualizer.attention.unobserved import unobserved

__all__ = ["is_too_large", "to_mask"]

_MOST = 2**28
"""Pairs of query and key up to which a mask is written out, for a moment."""

_written: dict[int, tuple[weakref.ref[Any], tuple[int, int], Mask]] = {}
"""By its id: the one that all layers of a forward share, so that it is written out once."""


def is_too_large(block_mask: Any, queries: int, keys: int) -> bool:
    """Tell whether a mask has too many pairs of query and key."""
    batch, heads = block_mask.shape[:2]
    return (batch or 1) * (heads or 1) * queries * keys > _MOST


def to_mask(block_mask: Any, query: Tensor, key: Tensor) -> Mask:
    """Return the mask that a BlockMask stands for, in its compact form."""
    sizes = query.shape[-2], key.shape[-2]
    known = _written.get(id(block_mask))
    if known is not None and known[0]() is block_mask and known[1] == sizes:
        return known[2]
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    batch, heads = (size or 1 for size in block_mask.shape[:2])
    with unobserved(query.device.type):
        visible = flex.create_mask(block_mask.mask_mod, batch, heads, *sizes, query.device)
        mask = Mask.from_tensor(visible)
    _written.clear()
    _written[id(block_mask)] = weakref.ref(block_mask), sizes, mask
    return mask
