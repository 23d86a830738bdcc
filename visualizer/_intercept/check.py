"""The self-check: is what we rebuild what the model computed?

A few rows of weights are computed again and held against what the model made of them. Nobody keeps
the values for that: they are projected onto one random direction `r` while the call is observed,
which takes one number per key, and `weights · (values r)` is compared with `output r`.
"""

from __future__ import annotations

import random
from typing import Protocol

import torch
from torch import Tensor

from visualizer.attention import AttentionCall
from visualizer.attention.rows import weights_of_rows

__all__ = ["Check", "OutputCheck", "WeightsCheck", "indices", "largest", "score_size", "some_rows"]

_random = random.Random(0x5EED)  # private: the program's random state is never touched

_SCORE_ROUNDING = 32.0
_OUTPUT_ROUNDING = 8.0


class Check(Protocol):
    """Compares a rebuilt map with what the model computed."""

    def excess(self, call: AttentionCall) -> Tensor:
        """Return by how much the difference passes what rounding explains, at its largest.

        A single number on the call's device: at most 1 where they agree, NaN where there is
        nothing to compare.
        """

    def tensors(self) -> tuple[Tensor, ...]:
        """Return what is kept for it."""


class OutputCheck:
    """Compares with some rows of the output.

    Attributes:
        rows: Which queries.
        got: `output r`, shape `(batch, head, row)`.
        values: `values r`, shape `(batch, key_head, key)`.
        rounding: The relative error of the output's type.
        size: `Σ|output|` of the rows, shape `(batch, head, row)`; None for float32 and float64.
    """

    __slots__ = ("got", "rounding", "rows", "size", "values")

    def __init__(
        self, rows: slice, got: Tensor, values: Tensor, rounding: float, size: Tensor | None
    ) -> None:
        self.rows, self.got, self.values = rows, got, values
        self.rounding, self.size = rounding, size

    @classmethod
    def of(cls, value: Tensor, output: Tensor) -> OutputCheck:
        """Project the values and some rows of the output onto a random direction."""
        rows = some_rows(output.shape[-2])
        some = output[:, :, rows].detach()
        exact = output.dtype in (torch.float32, torch.float64)
        direction = _direction(value.shape[-1], value.device, value.dtype if exact else None)
        value = value.detach()
        if exact:
            return cls(rows, some @ direction, _project(value, direction), _eps(output), None)
        some = some.float()
        got, size = some @ direction, some.abs().sum(-1)
        return cls(rows, got, _project(value.float(), direction), _eps(output), size)

    def excess(self, call: AttentionCall) -> Tensor:
        weights = weights_of_rows(call, indices(call, self.rows))
        expected, spread = (
            self._through(weights, self.values),
            self._through(weights, self.values.abs()),
        )
        scores = score_size(call, self.rows)
        kernel = 1.2e-7 if weights.dtype == torch.float32 else 2.3e-16
        allowed = (
            _SCORE_ROUNDING * kernel * (8 + scores) + _OUTPUT_ROUNDING * self.rounding
        ) * spread
        if self.size is not None:
            allowed = allowed + _OUTPUT_ROUNDING * self.rounding * self.size
        return largest((expected - self.got.to(expected.dtype)).abs() / (allowed + 1e-30))

    def _through(self, weights: Tensor, values: Tensor) -> Tensor:
        """Return `weights · values`, shape `(batch, head, row)`."""
        batch, head, row, key = weights.shape
        groups = weights.reshape(batch, values.shape[1], -1, key)
        through = groups @ values.to(weights.dtype).unsqueeze(-1)
        return through.reshape(batch, head, row)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.got, self.values


class WeightsCheck:
    """Compares with some rows of the map that the program itself computed.

    Attributes:
        rows: Which queries.
        got: Those rows, shape `(batch, head, row, key)`.
        rounding: The relative error of the least exact type that took part.
    """

    __slots__ = ("got", "rounding", "rows")

    def __init__(self, rows: slice, got: Tensor, rounding: float) -> None:
        self.rows, self.got, self.rounding = rows, got, rounding

    @classmethod
    def of(cls, weights: Tensor, rounding: float) -> WeightsCheck:
        """Copy some rows."""
        rows = some_rows(weights.shape[-2])
        return cls(rows, weights[:, :, rows].detach().clone(), rounding)

    def excess(self, call: AttentionCall) -> Tensor:
        weights = weights_of_rows(call, indices(call, self.rows))
        scores = score_size(call, self.rows).unsqueeze(-1)
        rounding = self.rounding
        allowed = _SCORE_ROUNDING * rounding * (8 + scores) * (weights + rounding)
        return largest((weights - self.got.to(weights.dtype)).abs() / (allowed + 1e-30))

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.got,)


def some_rows(count: int) -> slice:
    """Choose two queries of `count`; a slice, since that copies nothing."""
    if count < 2:
        return slice(0, count)
    first = _random.randrange(count - 1)
    second = _random.randrange(first + 1, count)
    return slice(first, second + 1, second - first)


def indices(call: AttentionCall, rows: slice) -> list[int]:
    """Return a slice's queries."""
    return list(range(call.shape[2])[rows])


_directions: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


def _direction(size: int, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """Return a random vector of 1 and -1; made once for each size."""
    place = (size, device, dtype or torch.float32)
    found = _directions.get(place)
    if found is None:
        signs = [_random.choice((-1.0, 1.0)) for _ in range(size)]
        with torch.inference_mode(False):
            found = torch.tensor(signs, dtype=place[2], device=device)
        _directions[place] = found
    return found


def _project(value: Tensor, direction: Tensor) -> Tensor:
    """Return `value · direction`, shape `(batch, head, key)`, without a copy where it can be."""
    swapped = value.transpose(1, 2)
    if swapped.is_contiguous() and not value.is_contiguous():
        return (swapped @ direction).transpose(1, 2)
    return value @ direction


def score_size(call: AttentionCall, rows: slice) -> Tensor:
    """Return a bound of the scores of some rows, shape `(batch, head, row)`."""
    query = torch.linalg.vector_norm(call.query[:, :, rows], dim=-1, dtype=torch.float32)
    key = torch.linalg.vector_norm(call.key, dim=-1, dtype=torch.float32).amax(-1)
    groups = query.shape[1] // key.shape[1]
    return query * key.repeat_interleave(groups, 1).unsqueeze(-1) * abs(call.scale)


def largest(ratio: Tensor) -> Tensor:
    """Return the largest of what is comparable: rows of NaN on both sides say nothing."""
    flat = ratio.flatten()
    seen = flat[~flat.isnan()] if not flat.is_cuda else flat.nan_to_num(0.0)
    return seen.max() if seen.numel() else flat.new_tensor(float("nan"))


def _eps(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps
