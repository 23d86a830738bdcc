"""The self-check: is what we rebuild what the model computed?

A few rows of weights are computed again and held against what the model made of them. Nobody keeps
the values for that: they are projected onto one random direction `r` while the call is observed,
and `weights · (values r)` is compared with `output r`. Their sizes tell what rounding may do. That
is two numbers a key.
"""

from __future__ import annotations

import random
from typing import Protocol

import torch
from torch import Tensor

from visualizer.attention import AttentionCall
from visualizer.attention.rows import weights_of_rows
from visualizer.attention.unobserved import unobserved

__all__ = [
    "Check",
    "OutputCheck",
    "WeightsCheck",
    "compare",
    "score_size",
    "some_rows",
    "some_weights",
]

_random = random.Random(0x5EED)  # private: the program's random state is never touched

_MOST_ROWS = 4
_SCORE_ROUNDING = 8.0
_OUTPUT_ROUNDING = 4.0


class Check(Protocol):
    """Compares a rebuilt map with what the model computed."""

    def excess(self, call: AttentionCall, weights: Tensor | None = None) -> Tensor:
        """Return by how much the difference passes what rounding explains, at its largest.

        A single number on the call's device: at most 1 where they agree, NaN where there is
        nothing to compare.

        Args:
            call: The call.
            weights: Its weights, shape `(batch, head, query, key)`, where they are there already.
        """

    def tensors(self) -> tuple[Tensor, ...]:
        """Return what is kept for it."""


class OutputCheck:
    """Compares with some rows of the output.

    Attributes:
        rows: Which queries.
        got: `output r`, shape `(batch, head, row)`.
        values: `values r`, shape `(batch, key_head, key)`.
        sizes: `‖value‖`, shape `(batch, key_head, key)`: what rounding is in proportion to.
        rounding: The relative error of the output's type.
    """

    __slots__ = ("got", "rounding", "rows", "sizes", "values")

    def __init__(
        self, rows: slice, got: Tensor, values: Tensor, sizes: Tensor, rounding: float
    ) -> None:
        self.rows, self.got, self.values, self.sizes = rows, got, values, sizes
        self.rounding = rounding

    @classmethod
    def of(cls, value: Tensor, output: Tensor) -> OutputCheck:
        """Project the values and some rows of the output onto a random direction."""
        rows = some_rows(output.shape[-2])
        value, some = value.detach(), output[:, :, rows].detach()
        exact = value.dtype if value.dtype == torch.float64 else torch.float32
        direction = _direction(value.shape[-1], value.device, exact)
        sizes = torch.linalg.vector_norm(value, dim=-1, dtype=exact)
        projected = _project(value.to(exact), direction)
        return cls(rows, some.to(exact) @ direction, projected, sizes, _eps(output))

    def excess(self, call: AttentionCall, weights: Tensor | None = None) -> Tensor:
        weights = some_weights(call, self.rows, weights)
        kernel = torch.finfo(weights.dtype).eps
        scores = _SCORE_ROUNDING * kernel * (8 + score_size(call, self.rows))
        return self._excess(weights, scores)

    def excess_of(self, weights: Tensor) -> Tensor:
        """Return the same for the program's own weights, shape `(batch, head, query, key)`."""
        rounding = _SCORE_ROUNDING * torch.finfo(weights.dtype).eps
        rows = weights[:, :, self.rows].to(self.values.dtype)
        return self._excess(rows, torch.full_like(self.got, rounding))

    def _excess(self, weights: Tensor, scores: Tensor) -> Tensor:
        expected, spread = self._through(weights, self.values), self._through(weights, self.sizes)
        allowed = (scores + _OUTPUT_ROUNDING * self.rounding) * spread
        expected = expected.masked_fill(weights.sum(-1) == 0, torch.nan)  # kernels differ there
        return compare(expected, self.got, allowed)

    def _through(self, weights: Tensor, values: Tensor) -> Tensor:
        """Return `weights · values`, shape `(batch, head, row)`."""
        batch, head, row, key = weights.shape
        groups = weights.reshape(batch, values.shape[1], -1, key)
        through = groups @ values.to(weights.dtype).unsqueeze(-1)
        return through.reshape(batch, head, row)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.got, self.values, self.sizes


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

    def excess(self, call: AttentionCall, weights: Tensor | None = None) -> Tensor:
        weights = some_weights(call, self.rows, weights)
        scores = score_size(call, self.rows).unsqueeze(-1)
        rounding = self.rounding
        allowed = _SCORE_ROUNDING * rounding * (8 + scores) * (weights + rounding)
        return compare(weights, self.got, allowed)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.got,)


def some_rows(count: int) -> slice:
    """Choose four queries of `count`, at random; as a slice, since that copies nothing."""
    if count <= _MOST_ROWS:
        return slice(0, count)
    step = _random.randint(1, (count - 1) // (_MOST_ROWS - 1))
    start = _random.randrange(count - (_MOST_ROWS - 1) * step)
    return slice(start, start + (_MOST_ROWS - 1) * step + 1, step)


def some_weights(call: AttentionCall, rows: slice, weights: Tensor | None) -> Tensor:
    """Return the weights of some rows, out of those of all where they are there."""
    if weights is not None:
        return weights[:, :, rows]
    return weights_of_rows(call, list(range(call.shape[2])[rows]))


_directions: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


def _direction(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a random vector of 1 and -1; made once for each size."""
    place = (size, device, dtype)
    found = _directions.get(place)
    if found is None:
        signs = [_random.choice((-1.0, 1.0)) for _ in range(size)]
        with unobserved(device.type):
            found = torch.tensor(signs, dtype=dtype, device=device)
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
    query = torch.linalg.vector_norm(call.query[:, :, rows], dim=-1, dtype=call.dtype)
    key = torch.linalg.vector_norm(call.key, dim=-1, dtype=call.dtype).amax(-1)
    groups = query.shape[1] // key.shape[1]
    return query * key.repeat_interleave(groups, 1).unsqueeze(-1) * abs(call.scale)


def compare(expected: Tensor, got: Tensor, allowed: Tensor) -> Tensor:
    """Return the largest difference over what is allowed; NaN where nothing is comparable.

    Where what we expect is NaN, as in a row that sees no key, nothing is. What the program has as
    NaN and we have not is as far off as can be.
    """
    got = got.to(expected.dtype)
    apart = (expected - got).abs() / (allowed + 1e-30)
    apart = torch.where(expected == got, 0.0, apart).nan_to_num(nan=torch.inf)
    unknown = expected.isnan()
    apart = apart.masked_fill(unknown, 0.0).max()
    return torch.where(unknown.all(), torch.nan, apart)


def _eps(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps
