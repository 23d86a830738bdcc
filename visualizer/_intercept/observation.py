"""What was seen of one attention call, and what is kept of it.

Making an observation runs no operation of torch and copies nothing: it happens inside the model's
forward. All that is to be computed waits for `hold`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visualizer._intercept.check import Check, OutputCheck, WeightsCheck
from visualizer._intercept.holding import hold, hold_mask, is_cache, keep, why_no_value
from visualizer._intercept.returned import Returned
from visualizer.attention import AttentionCall, Mask

__all__ = ["FourAxes", "Held", "Observation", "QueryKeyObservation", "WeightsObservation"]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What is kept of one attention call.

    Attributes:
        read: Returns the call's inputs, or its weights.
        tensors: Everything that is kept, for its bytes.
        check: Compares with what the model computed; None where nothing can be compared.
        mask: The mask, where there is one.
        confirmed: What is known without a check: True for a variable of the program in a function
            that is known, None otherwise.
    """

    read: Callable[[], AttentionCall | Tensor]
    tensors: tuple[Tensor, ...]
    check: Check | None = None
    mask: Mask | None = None
    confirmed: bool | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Observation:
    """One attention call.

    Attributes:
        source: What computed it: "sdpa", "eager", "flex_attention", "multi_head_attention", …
        shape: `(batch, head, query, key)`.
        module: The module it belongs to, where the program says so.
        refusal: Why its map can't be rebuilt; completes "…, because …".
        is_borrowed: Its tensors, but for masks, are good for this moment only, and are copied.
    """

    source: str
    shape: tuple[int, int, int, int] = (0, 0, 0, 0)
    module: Any = None
    refusal: str | None = None
    is_borrowed: bool = False

    def why_no_value(self) -> str | None:
        """Say why nothing can be kept of it; None where it can."""
        return self.refusal

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the tensors that the map is computed from."""
        return ()

    def results(self) -> tuple[Tensor, ...]:
        """Return the tensors that the map can be compared with."""
        return ()

    def nbytes(self) -> tuple[int, int]:
        """Return how many bytes queries and keys take, and the weights of all rows."""
        rows = 4 * math.prod(self.shape)
        return rows, rows

    def hold(self) -> Held:
        """Keep what is needed to compute the map later."""
        raise NotImplementedError

    def own_weights(self) -> Observation | None:
        """Return the observation of the map that the program computed, if it did."""
        return None

    def returned(self) -> Returned | None:
        """Return what a gradient comes back for; None where nothing is seen of it."""
        return None


class FourAxes(NamedTuple):
    """Tensors as `(batch, head, token, dim)`; `weights` as `(batch, head, query, key)`."""

    query: Tensor
    key: Tensor
    value: Tensor | None
    output: Tensor
    weights: Tensor | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class QueryKeyObservation(Observation):
    """A call whose map is the softmax of the scores of its queries and keys.

    Attributes:
        tensors: Query, key, value, output and weights, as the program has them.
        parts: Mask, bias and sinks, as the program has them.
        arrange: Gives the tensors their four axes.
        arrange_returned: Gives them to what a gradient comes back for: the output, or the weights
            where there is no value.
        make_mask: Returns the mask.
        scale: What scores are multiplied with.
        softcap: As in `AttentionCall`.
        sinks: As in `AttentionCall`.
        empty_rows: As in `AttentionCall`.
        dropout: The probability with which weights were dropped.
    """

    tensors: FourAxes
    parts: tuple[Tensor | None, ...]
    arrange: Callable[[FourAxes], FourAxes]
    make_mask: Callable[[], Mask]
    scale: float
    arrange_returned: Callable[[Tensor], Tensor] = lambda tensor: tensor
    softcap: float | None = None
    sinks: Tensor | None = None
    empty_rows: float = 0.0
    dropout: float = 0.0
    _mask: Mask | None = field(default=None, init=False)

    @property
    def mask(self) -> Mask:
        """The mask, in its compact form."""
        if self._mask is None:
            self._mask = hold_mask(self.make_mask())
        return self._mask

    def why_no_value(self) -> str | None:
        return why_no_value(self.tensors.query, self.tensors.output)

    def inputs(self) -> tuple[Tensor, ...]:
        return (*self.tensors[:2], *(part for part in self.parts if part is not None))

    def results(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in self.tensors[2:] if tensor is not None)

    def nbytes(self) -> tuple[int, int]:
        query, key = self.tensors[:2]
        inputs = (query.numel() + key.numel()) * query.element_size()
        return inputs, 4 * math.prod(self.shape)

    def hold(self) -> Held:
        found = self.arrange(self.tensors)
        output, copy = found.output, self.is_borrowed
        call = AttentionCall(
            hold(_as_computed(found.query, output), copy=copy),
            hold(_as_computed(found.key, output), copy=copy or is_cache(found.query, found.key)),
            scale=self.scale,
            mask=self.mask,
            softcap=self.softcap,
            sinks=None if self.sinks is None else hold(self.sinks),
            empty_rows=self.empty_rows,
        )
        check = None if self.dropout > 0 else _check(found)
        more = () if check is None else check.tensors()
        return Held(lambda: _intact(call), (*call.tensors(), *more), check, call.mask)

    def own_weights(self) -> Observation | None:
        weights = self.arrange(self.tensors).weights
        if weights is None:
            return None
        return WeightsObservation(
            source=self.source,
            shape=self.shape,
            module=self.module,
            weights=weights,
            confirmed=None if self.dropout > 0 else True,
            is_borrowed=self.is_borrowed,
        )

    def returned(self) -> Returned | None:
        found = self.arrange(self.tensors)
        output, weights = self.tensors.output, self.tensors.weights
        if found.value is not None:
            value = _as_computed(found.value, output)
            return Returned(output, self.arrange_returned, value, found.weights, self.dropout)
        return None if weights is None else Returned(weights, self.arrange_returned)


@dataclass(slots=True, eq=False, kw_only=True)
class WeightsObservation(Observation):
    """A call whose map the program itself computed.

    Attributes:
        weights: Shape `(batch, head, query, key)`.
        confirmed: True where it is certain that these are attention weights.
        program_weights: The program's own tensor of them.
        arrange: Gives it its four axes.
    """

    weights: Tensor
    confirmed: bool | None = None
    program_weights: Tensor | None = None
    arrange: Callable[[Tensor], Tensor] | None = None

    def why_no_value(self) -> str | None:
        return why_no_value(self.weights)

    def inputs(self) -> tuple[Tensor, ...]:
        return (self.weights,)

    def nbytes(self) -> tuple[int, int]:
        size = self.weights.numel() * self.weights.element_size()
        return size, size

    def returned(self) -> Returned | None:
        if self.program_weights is None or self.arrange is None:
            return None
        return Returned(self.program_weights, self.arrange)

    def hold(self) -> Held:
        kept = keep(self.weights, copy=self.is_borrowed)
        return Held(lambda: kept.read()[0], kept.tensors, confirmed=self.confirmed)


def _as_computed(tensor: Tensor, output: Tensor) -> Tensor:
    """Return an input in the type that autocast gave it, which shows in the output's."""
    return tensor if tensor.dtype == output.dtype else tensor.to(output.dtype)


def _check(found: FourAxes) -> Check | None:
    if 0 in found.output.shape:
        return None
    if found.weights is not None:
        types = {tensor.dtype for tensor in (found.query, found.output, found.weights)}
        return WeightsCheck.of(found.weights, max(torch.finfo(each).eps for each in types))
    return None if found.value is None else OutputCheck.of(found.value, found.output)


def _intact(call: AttentionCall) -> AttentionCall:
    call.check_intact()
    return call
