"""What attention did for an outcome: weights and their gradients together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from visualizer.analysis.arrays import Floats, to_floats, to_weights
from visualizer.analysis.choices import check_place
from visualizer.analysis.layers import maps_of
from visualizer.analysis.lazy import each_map, is_lazy
from visualizer.errors import OutOfRangeError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from visualizer.attention import AttentionMap, OutputGradient
    from visualizer.attention.record import Source

__all__ = ["head_importance", "relevance"]

_BLOCK_BYTES = 16 * 2**20


def relevance(
    weights: Any, gradients: Any = None, *, query: int | None = None, item: int | None = None
) -> Floats:
    """Tell which input tokens an outcome rests on (Chefer et al., ICCV 2021, eqs. 5 and 6).

    In each layer, what a token gets from others by attention counts as far as the outcome's
    gradient is in favour of it: `R ← R + Eₕ[(∇A ⊙ A)⁺] · R`, from the identity on. The outcome is
    what `backward()` was called on, such as the logit of a class.

    Args:
        weights: Self-attention, shape `(layer, head, query, key)`; rows sum to 1. An array, a
            tensor, or a list with one for each layer. Or an `AttentionMap` for each layer, as
            `captured.attention` of `capture(model, gradients=True)`, which are gone through piece
            by piece.
        gradients: Those of the weights, of the same shape; `AttentionMap`s have their own.
        query: The token whose row is asked for: where the model's head reads, 0 for CLS, -1 for
            the last token of a language model. That is much less work than all of them.
        item: For `AttentionMap`s, which item of the batch; needed where there are several.
    Returns:
        Shape `(key,)`, or `(query, key)` for all queries: the relevance of each input token, 0 or
        more; the token's own has the 1 of the identity in it.
    Raises:
        ShapeError: Not self-attention of one size; several items and no choice.
        NotWeightsError: Rows that are not weights.
        NoGradientError: A map has no gradient; the message says what to change.
        OutOfRangeError: A query or an item that does not exist.

    Example:
        >>> relevance([[[[0.5, 0.5], [0.0, 1.0]]]], [[[[1.0, 2.0], [0.0, -3.0]]]], query=0)
        array([1.5, 1. ])
    """
    if is_lazy(weights):
        _check_no_gradients(gradients)
        return _of_maps(maps_of(weights, item, "relevance"), query)
    if item is not None:
        raise OutOfRangeError(
            f"item is {item!r}, and weights are no AttentionMaps; they have the shape (layer, "
            f"head, query, key), without a batch: choose the item before"
        )
    array = to_weights(weights)
    if array.ndim != 4 or array.shape[2] != array.shape[3]:
        raise ShapeError(
            f"relevance takes self-attention, shape (layer, head, query, key) with as many queries "
            f"as keys; got {array.shape}"
        )
    layers = (array * _gradients_of(gradients, array)).clip(min=0).mean(axis=1)
    result: Floats = np.eye(array.shape[-1], dtype=layers.dtype)
    if query is None:
        for layer in layers:
            result = result + layer @ result
        return result
    row = result[check_place(query, array.shape[-1], "query")]
    for layer in layers[::-1]:
        row = row + row @ layer
    return np.asarray(row)


def head_importance(weights: Any, gradients: Any = None) -> Floats:
    """Tell how much an outcome would change without a head (Michel et al., 2019, eq. 2).

    `|Σ O ⊙ ∂L/∂O|` over the output `O` of a head, which is its derivative by a mask on the head,
    and the same as `|Σ A ⊙ ∂L/∂A|`. The paper averages it over the data: take the mean over items
    and batches. (It also divides each layer's by their Euclidean norm, to compare layers.)

    Args:
        weights: Shape `(..., query, key)`; rows sum to 1. Or an `AttentionMap` of
            `capture(model, gradients=True)`, or a list of them.
        gradients: Those of the weights, of the same shape; `AttentionMap`s have their own.
    Returns:
        Shape `(...)`, as `(batch, head)`; 0 or more.
    Raises:
        ShapeError: Shapes that differ, or fewer than two axes.
        NotWeightsError: Rows that are not weights.
        NoGradientError: A map has no gradient; the message says what to change.

    Example:
        >>> head_importance([[[0.5, 0.5], [0.0, 1.0]]], [[[1.0, 2.0], [0.0, -3.0]]])
        array([1.5])
    """
    if is_lazy(weights):
        _check_no_gradients(gradients)
        return each_map(weights, _importance_of_map)
    array = to_weights(weights)
    sums = (array * _gradients_of(gradients, array)).sum(axis=(-2, -1), dtype=np.float64)
    return np.asarray(np.abs(sums).astype(array.dtype))


def _gradients_of(gradients: Any, array: Floats) -> Floats:
    if gradients is None:
        raise ShapeError(
            "gradients are missing: arrays have none of their own. Give those of the weights, or "
            "AttentionMaps of capture(model, gradients=True)"
        )
    found = to_floats(gradients, "gradients")
    if found.shape != array.shape:
        raise ShapeError(
            f"gradients have shape {found.shape} and weights {array.shape}; expected the same"
        )
    return found


def _check_no_gradients(gradients: Any) -> None:
    if gradients is not None:
        raise ShapeError(
            "gradients were given beside AttentionMaps, which have their own; leave them out, or "
            "give arrays of both"
        )


def _importance_of_map(attention_map: AttentionMap) -> Floats:
    from visualizer.attention.gradient import sums
    from visualizer.attention.unobserved import unobserved

    source, gradient = _read(attention_map)
    with unobserved(source.device.type):
        found = sums(source, gradient).abs_().cpu().numpy()
    return np.asarray(found.astype(attention_map.dtype))


def _of_maps(maps: list[tuple[AttentionMap, int]], query: int | None) -> Floats:
    tokens = maps[0][0].shape[2]
    return _all_rows(maps) if query is None else _one_row(maps, check_place(query, tokens, "query"))


def _one_row(maps: list[tuple[AttentionMap, int]], query: int) -> Floats:
    """Go from the last layer to the first with one row, which is a pass through each map."""
    import torch

    from visualizer.attention.gradient import passed_on
    from visualizer.attention.unobserved import unobserved

    row = None
    for attention_map, item in reversed(maps):
        source, gradient = _read(attention_map)
        with unobserved(source.device.type):
            if row is None:
                row = torch.zeros(source.shape[2], dtype=torch.float64)
                row[query] = 1
            row = row.to(source.device)
            row = row + passed_on(source, gradient, item, row)
    assert row is not None
    return np.asarray(row.cpu().numpy().astype(maps[0][0].dtype))


def _all_rows(maps: list[tuple[AttentionMap, int]]) -> Floats:
    from visualizer.attention.gradient import passed_on_rows
    from visualizer.attention.unobserved import unobserved

    first, _ = maps[0]
    tokens = first.shape[2]
    step = max(1, _BLOCK_BYTES // (8 * tokens))
    result: Floats = np.eye(tokens, dtype=first.dtype)
    for attention_map, item in maps:
        source, gradient = _read(attention_map)
        after = result.copy()
        for start in range(0, tokens, step):
            part = slice(start, min(start + step, tokens))
            with unobserved(source.device.type):
                rows = passed_on_rows(source, gradient, item, part).cpu().numpy()
            after[part] += rows @ result
        result = after
    return result


def _read(attention_map: AttentionMap) -> tuple[Source, OutputGradient | Tensor]:
    """Return what a map is computed from, and its gradient."""
    from visualizer.attention.record import read_intact

    gradient = attention_map.record.read_gradient()
    return read_intact(attention_map.record), gradient
