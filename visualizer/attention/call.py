"""The facts of one attention call, from which its map can be computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from visualizer.attention.mask import Mask
from visualizer.attention.picks import Shape
from visualizer.errors import OutOfRangeError, OverwrittenError, ShapeError

__all__ = ["AttentionCall"]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """What a call of attention was given. All tensors are kept by reference.

    Attributes:
        query: Shape `(batch, head, query, dim)`.
        key: Shape `(batch, key_head, key, dim)`. Each key head serves `head // key_head` query
            heads that follow each other. Its batch, or that of the queries, may be 1.
        scale: What `query · key` is multiplied with.
        mask: Which keys are visible.
        softcap: Scores become `softcap · tanh(scores / softcap)`, before the mask (Gemma 2).
        sinks: Shape `(head,)`: logits that take part in the softmax and are dropped afterwards
            (GPT-OSS), so that rows sum to less than 1.
        empty_rows: The weights of a query whose keys are all hidden with -inf: 0 (SDPA) or NaN
            (softmax).
    Raises:
        ShapeError: Shapes that don't fit each other.
    """

    query: Tensor
    key: Tensor
    scale: float
    mask: Mask = field(default_factory=Mask)
    softcap: float | None = None
    sinks: Tensor | None = None
    empty_rows: float = 0.0
    _versions: tuple[int | None, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        """Check the shapes, and remember the tensors' versions."""
        _check_operands(self.query, self.key)
        _check_mask(self.mask, self.shape)
        if self.sinks is not None and self.sinks.shape != (self.shape[1],):
            raise ShapeError(
                f"sinks have shape {tuple(self.sinks.shape)}; expected a logit for each of the "
                f"{self.shape[1]} heads"
            )
        if self.softcap is not None and not self.softcap > 0:
            raise OutOfRangeError(f"softcap is {self.softcap}; expected a positive number or None")
        if self.empty_rows != 0 and not math.isnan(self.empty_rows):
            raise OutOfRangeError(f"empty_rows is {self.empty_rows}; expected 0 or NaN")
        object.__setattr__(self, "_versions", tuple(map(_version, self.tensors())))

    @property
    def shape(self) -> Shape:
        """Sizes of batch, head, query, key."""
        query, key = self.query.shape, self.key.shape
        return max(query[0], key[0]), query[1], query[2], key[2]

    @property
    def group(self) -> int:
        """How many query heads share a key head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """What weights are computed in: float64 for such queries, else float32."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the map is computed."""
        return self.query.device

    @property
    def nbytes(self) -> int:
        """Bytes of the distinct storages that are held, whole also where a tensor is a view."""
        storages = (tensor.untyped_storage() for tensor in self.tensors())
        return sum({each.data_ptr(): each.nbytes() for each in storages}.values())

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the call holds."""
        sinks = () if self.sinks is None else (self.sinks,)
        return (self.query, self.key, *self.mask.tensors(), *sinks)

    def check_intact(self) -> None:
        """Make sure that nobody has written into the tensors since; inference tensors can't tell.

        Raises:
            OverwrittenError: Somebody has.
        """
        for tensor, version in zip(self.tensors(), self._versions, strict=True):
            if version is not None and _version(tensor) != version:
                raise OverwrittenError(
                    f"a tensor of shape {tuple(tensor.shape)}, from which an attention map of "
                    f"shape {self.shape} is computed, was written to in place after the call: the "
                    f"map would be wrong. Read it before that, or keep a clone of the tensor"
                )


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _check_operands(query: Tensor, key: Tensor) -> None:
    q, k = tuple(query.shape), tuple(key.shape)
    fits = (
        len(q) == len(k) == 4
        and q[3] == k[3]
        and 0 not in (*q[:3], *k[:3])
        and q[1] % k[1] == 0
        and (q[0] == k[0] or 1 in (q[0], k[0]))
    )
    if not fits:
        raise ShapeError(
            f"query has shape {q} and key {k}; expected (batch, head, query, dim) and (batch, "
            f"key_head, key, dim), none empty, with equal dim and the heads a multiple of key_head"
        )
    if not (query.is_floating_point() and key.is_floating_point()):
        raise ShapeError(
            f"query is of type {query.dtype} and key of {key.dtype}; expected floating point"
        )


def _check_mask(mask: Mask, shape: Shape) -> None:
    whole = (mask.keys, (shape[0], 1, 1, shape[3])), (mask.visible, shape), (mask.bias, shape)
    spans = ((end, shape[:3]) for end in mask.spans or ())
    for tensor, expected in (*whole, *spans):
        if tensor is None:
            continue
        if any(size not in (1, full) for size, full in zip(tensor.shape, expected, strict=True)):
            raise ShapeError(
                f"a part of the mask ({mask.kind}) has shape {tuple(tensor.shape)}; expected what "
                f"broadcasts to {tuple(expected)}, for a map of shape {shape}"
            )
