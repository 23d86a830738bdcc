"""The gradient of the weights, computed from that of a call's output, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visualizer.attention.picks import Pick, Shape, take
from visualizer.attention.record import Source, device_of, dtype_of
from visualizer.attention.rows import head_runs
from visualizer.attention.scores import multiply
from visualizer.attention.stream import Piece, stream
from visualizer.errors import ShapeError

__all__ = [
    "Gradient",
    "OutputGradient",
    "gradient_of",
    "passed_on",
    "passed_on_rows",
    "products",
    "sums",
]


@dataclass(frozen=True, slots=True, eq=False)
class OutputGradient:
    """What the gradient of a map is computed from; both are kept by reference.

    The output is `weights · value`, so that `∂L/∂weights[i, j] = output[i] · value[j]`.

    Attributes:
        output: `∂L/∂output`, shape `(batch, head, query, dim)`.
        value: Shape `(batch, value_head, key, dim)`. Each value head serves `head // value_head`
            heads that follow each other. Its batch may be 1.
    Raises:
        ShapeError: Shapes that don't fit each other.
    """

    output: Tensor
    value: Tensor

    def __post_init__(self) -> None:
        """Check the shapes."""
        output, value = tuple(self.output.shape), tuple(self.value.shape)
        fits = (
            len(output) == len(value) == 4
            and output[3] == value[3]
            and 0 not in (*output[:3], *value[:3])
            and output[1] % value[1] == 0
            and value[0] in (1, output[0])
        )
        if not fits:
            raise ShapeError(
                f"the gradient of an output has shape {output} and values {value}; expected "
                f"(batch, head, query, dim) and (batch, value_head, key, dim), none empty, with "
                f"equal dim and the heads a multiple of value_head"
            )

    @property
    def shape(self) -> Shape:
        """Sizes of batch, head, query, key."""
        batch, heads, queries, _ = self.output.shape
        return batch, heads, queries, self.value.shape[2]

    @property
    def group(self) -> int:
        """How many heads share a value head."""
        return self.output.shape[1] // self.value.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """What it is computed in: float64 for such outputs, else float32."""
        return torch.float64 if self.output.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.output.device


Gradient = OutputGradient | Tensor
"""What the gradient of a map is computed from, or itself, shape `(batch, head, query, key)`."""


def gradient_of(source: Gradient, pick: Pick, out: Tensor | None = None) -> Tensor:
    """Return the gradient of some weights, shape `(item, head, query, key)`.

    Args:
        source: Where it comes from.
        pick: Which part; any heads.
        out: Contiguous, of that shape, to be written to.
    """
    heads = pick.heads.stop - pick.heads.start
    items = pick.items.stop - pick.items.start
    shape = (items, heads, len(pick), pick.keys.stop - pick.keys.start)
    if isinstance(source, Tensor):
        part = take(source, pick.items, pick.heads, pick.queries, pick.keys)
        return part.to(source.dtype if out is None else out.dtype).expand(shape)
    if out is None:
        out = torch.empty(shape, dtype=source.dtype, device=source.device)
    for run in head_runs(range(pick.heads.start, pick.heads.stop), source.group):
        values = slice(run.start // source.group, (run.stop - 1) // source.group + 1)
        inside = slice(run.start - pick.heads.start, run.stop - pick.heads.start)
        part = out if run == pick.heads else torch.empty_like(out[:, inside])
        multiply(
            take(source.output, pick.items, run, pick.queries),
            take(source.value, pick.items, values, pick.keys),
            1.0,
            part,
        )
        if part is not out:
            out[:, inside] = part
    return out


def products(
    source: Source,
    gradient: Gradient,
    *,
    items: slice | None = None,
    queries: slice | None = None,
) -> Iterator[Piece]:
    """Go through `weights ⊙ ∂L/∂weights`, piece by piece.

    Args:
        source: A call or weights.
        gradient: Where the gradient comes from.
        items: Of the batch; None is all.
        queries: Which; None is all.
    Yields:
        Pieces that hold the products; those may be changed, until the next one is taken.
    """
    buffer: Tensor | None = None
    for piece in stream(source, items=items, queries=queries):
        if buffer is None:  # the first piece is the largest
            buffer = torch.empty_like(piece.weights).flatten()
        if buffer.numel() < piece.weights.numel():
            buffer = buffer.new_empty(piece.weights.numel())
        shape = piece.weights.shape
        out = buffer[: piece.weights.numel()].view(1, *shape)
        item = slice(piece.item, piece.item + 1)
        part = gradient_of(gradient, Pick(item, piece.heads, piece.queries, piece.keys), out)
        torch.mul(part[0], piece.weights, out=out[0])
        yield replace(piece, weights=out[0])


def passed_on(source: Source, gradient: Gradient, item: int, amounts: Tensor) -> Tensor:
    """Return `Σᵢ amountsᵢ · Eₕ[(weights ⊙ ∂L/∂weights)⁺]ᵢ`, shape `(key,)`.

    Args:
        source: A call or weights.
        gradient: Where the gradient comes from.
        item: Index in the batch.
        amounts: Of each query, shape `(query,)`.
    """
    total = amounts.new_zeros(source.shape[3])
    some = amounts.nonzero()
    if len(some):
        queries = slice(int(some[0]), int(some[-1]) + 1)
        for piece in products(source, gradient, items=slice(item, item + 1), queries=queries):
            rows = amounts[piece.queries].to(piece.weights.dtype)
            total[piece.keys] += (rows @ piece.weights.clamp_(min=0)).sum(0)
    return total / source.shape[1]


def passed_on_rows(source: Source, gradient: Gradient, item: int, queries: slice) -> Tensor:
    """Return `Eₕ[(weights ⊙ ∂L/∂weights)⁺]` of some queries, shape `(query, key)`."""
    count = queries.stop - queries.start
    total = torch.zeros(count, source.shape[3], dtype=dtype_of(source), device=device_of(source))
    for piece in products(source, gradient, items=slice(item, item + 1), queries=queries):
        rows = slice(piece.queries.start - queries.start, piece.queries.stop - queries.start)
        total[rows, piece.keys] += piece.weights.clamp_(min=0).sum(0)
    return total.div_(source.shape[1])


def sums(source: Source, gradient: Gradient) -> Tensor:
    """Return `Σᵢⱼ weights ⊙ ∂L/∂weights`, shape `(batch, head)`, float64."""
    batch, heads = source.shape[:2]
    total = torch.zeros(batch, heads, dtype=torch.float64, device=device_of(source))
    for piece in products(source, gradient):
        total[piece.item, piece.heads] += piece.weights.sum((-2, -1))
    return total
