"""What was seen of one attention call, and what is kept of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from visualizer._intercept.check import Check, OutputCheck, WeightsCheck
from visualizer._intercept.holding import hold, keep, why_no_value
from visualizer.attention import AttentionCall, Mask

__all__ = ["Held", "Observation", "QueryKeyObservation", "WeightsObservation"]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What is kept of one attention call.

    Attributes:
        read: Returns the call's inputs, or its weights.
        tensors: Everything that is kept, for its bytes.
        check: Compares with what the model computed; None where nothing can be compared.
        mask: The mask, where there is one.
        confirmed: What is known without it: True for a variable of the program in a function that
            is known, None otherwise.
    """

    read: Callable[[], AttentionCall | Tensor]
    tensors: tuple[Tensor, ...]
    check: Check | None = None
    confirmed: bool | None = None
    mask: Mask | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Observation:
    """One attention call.

    Attributes:
        source: What computed it: "sdpa", "eager", "flex_attention", "multi_head_attention", …
        shape: `(batch, head, query, key)`.
        module: The module it belongs to, where the program says so.
        refusal: Why its map can't be rebuilt; completes "…, because …".
    """

    source: str
    shape: tuple[int, int, int, int] = (0, 0, 0, 0)
    module: Any = None
    refusal: str | None = None

    def nbytes(self) -> tuple[int, int]:
        """Return how many bytes its inputs take, and its rows."""
        rows = 4 * math.prod(self.shape)
        return rows, rows

    def hold(self) -> Held:
        """Keep what is needed to compute the map later."""
        raise NotImplementedError

    def why_no_value(self) -> str | None:
        """Say why nothing can be kept of it; None where it can."""
        return self.refusal


@dataclass(slots=True, eq=False, kw_only=True)
class QueryKeyObservation(Observation):
    """A call whose map is the softmax of the scores of its queries and keys.

    Attributes:
        query: Shape `(batch, head, query, dim)`.
        key: Shape `(batch, key_head, key, dim)`.
        value: Shape `(batch, key_head, key, value_dim)`.
        output: Shape `(batch, head, query, value_dim)`.
        make_mask: Returns the mask; called when it is certain that it is needed.
        weights: The map that the program itself computed, if it did.
        dropout: The probability with which weights were dropped.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    make_mask: Callable[[], Mask]
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None
    empty_rows: float = 0.0
    weights: Tensor | None = None
    dropout: float = 0.0
    _mask: Mask | None = field(default=None, init=False)

    @property
    def mask(self) -> Mask:
        if self._mask is None:
            self._mask = self.make_mask()
        return self._mask

    def why_no_value(self) -> str | None:
        return why_no_value(self.query, self.key, self.value, self.output)

    def nbytes(self) -> tuple[int, int]:
        size = self.query.element_size()
        return (self.query.numel() + self.key.numel()) * size, 4 * math.prod(self.shape)

    def hold(self) -> Held:
        query, key = self._as_computed(self.query), self._as_computed(self.key)
        call = AttentionCall(
            hold(query),
            hold(key),
            scale=self.scale,
            mask=self.mask,
            softcap=self.softcap,
            sinks=None if self.sinks is None else hold(self.sinks),
            empty_rows=self.empty_rows,
        )
        check = self._check()
        tensors = call.tensors() if check is None else (*call.tensors(), *check.tensors())
        return Held(read=lambda: _intact(call), tensors=tensors, check=check, mask=call.mask)

    def _as_computed(self, tensor: Tensor) -> Tensor:
        """Return an input in the type that autocast gave it, which shows in the output's."""
        return tensor if tensor.dtype == self.output.dtype else tensor.to(self.output.dtype)

    def _check(self) -> Check | None:
        if self.dropout > 0:
            return None
        if self.weights is not None:
            types = {t.dtype for t in (self.query, self.output, self.weights)}
            return WeightsCheck.of(self.weights, max(torch.finfo(t).eps for t in types))
        return OutputCheck.of(self.value, self.output)


@dataclass(slots=True, eq=False, kw_only=True)
class WeightsObservation(Observation):
    """A call whose map the program itself computed.

    Attributes:
        weights: Shape `(batch, head, query, key)`.
        confirmed: True where it is certain that these are attention weights.
    """

    weights: Tensor
    confirmed: bool | None = None

    def why_no_value(self) -> str | None:
        return why_no_value(self.weights)

    def nbytes(self) -> tuple[int, int]:
        size = self.weights.numel() * self.weights.element_size()
        return size, size

    def hold(self) -> Held:
        kept = keep(self.weights)
        return Held(read=lambda: kept.read()[0], tensors=kept.tensors, confirmed=self.confirmed)


def _intact(call: AttentionCall) -> AttentionCall:
    call.check_intact()
    return call
