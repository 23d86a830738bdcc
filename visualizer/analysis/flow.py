"""Attention flow."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from visualizer.analysis.arrays import Floats
from visualizer.analysis.choices import check_between, check_place, key_places
from visualizer.analysis.layers import check_residual, exact_rows, layers_of
from visualizer.analysis.rows import Rows
from visualizer.errors import MapTooLargeError, MissingDependencyError

__all__ = ["AttentionFlow", "attention_flow"]

_UNIT: Final = 2**30
"""scipy computes with 32-bit integers; no flow is above 1, so a capacity of 1 becomes this."""

_MOST_EDGES: Final = 2**24
"""scipy takes some 60 bytes for each."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionFlow:
    """What can flow from an output token to input tokens, and how much of the attention was used.

    Attributes:
        values: The maximum flow to each input token, 0 to 1; shape `(key,)`,
            or those of `to`.
        dropped: Share of the attention that was left out, of the row that lost most; 0 to 1.
    """

    values: Floats
    dropped: float

    @property
    def is_exact(self) -> bool:
        """Whether nothing was left out; what is left out can only make values smaller."""
        return self.dropped == 0


def attention_flow(
    weights: Any,
    query: int,
    *,
    to: Any = None,
    keys: int | None = None,
    residual: float = 0.5,
    item: int | None = None,
) -> AttentionFlow:
    """Return the maximum flow from an output token to each input token (Abnar & Zuidema, 2020).

    Tokens of all layers are the nodes; each layer leads from a token to those that it attends to,
    with the capacity `(1 - residual) · weights + residual · identity`. The flow to an input token
    is limited by the narrowest cut on the way, and each token has a flow for itself: unlike
    rollout they don't sum to 1. Where many tokens receive much, all flows can reach 1.

    Args:
        weights: Head-averaged, shape `(layer, query, key)`; rows sum to 1. Or an `AttentionMap`
            for each layer, as `captured.attention`, whose heads are averaged; as for `rollout`.
        query: The output token; -1 is the last.
        to: Input tokens, as an index, several, a slice or a mask; None is all. Each takes a
            maximum flow of its own.
        keys: Use only so many keys of each query, those that it attends to most, and the token
            itself. Needed for long texts, where all don't fit. None is all.
        residual: Share of the identity path, 0 to 1; the paper takes 0.5.
        item: For `AttentionMap`s, which item of the batch; needed where there are several.
    Returns:
        The flows, from capacities rounded to 2⁻³⁰, and what was dropped.
    Raises:
        ShapeError: Not three axes, or the last two differ; several items and no choice.
        NotWeightsError: Rows that are not weights.
        OutOfRangeError: `residual` outside of 0 to 1; a token or an item that does not exist.
        MapTooLargeError: The graph has more than 2²⁴ edges.
        MissingDependencyError: scipy is not installed.

    Example:
        >>> import numpy as np
        >>> flow = attention_flow(np.full((2, 2, 2), 0.5), query=0)
        >>> flow.values, flow.is_exact
        (array([1. , 0.5]), True)
    """
    maximum_flow, csr_matrix = _from_scipy()
    residual = check_residual(residual)
    layers = layers_of(weights, item, "attention_flow")
    tokens = layers[0].shape[-1]
    query = check_place(query, tokens, "query")
    inputs = np.arange(tokens) if to is None else key_places(to, layers[0].shape)
    most = tokens if keys is None else check_between(keys, 1, tokens, "keys")
    _check_size(len(layers), tokens, most)
    (starts, ends, capacities), dropped = _edges(layers, query, most, residual)
    nodes = (len(layers) + 1) * tokens
    graph = csr_matrix((capacities, (starts, ends)), shape=(nodes, nodes))
    source = len(layers) * tokens + query
    flows = [maximum_flow(graph, source, int(token)).flow_value / _UNIT for token in inputs]
    dtype = np.result_type(*(layer.dtype for layer in layers))
    return AttentionFlow(np.minimum(np.array(flows, dtype), 1), dropped)


def _edges(
    layers: Sequence[Rows], query: int, most: int, residual: float
) -> tuple[list[NDArray[np.int32]], float]:
    """Return start, end and capacity of what can be reached from the query, and what is dropped.

    Token `i` above layer `l`, counted from 1, is node `l · tokens + i`; the inputs come first.
    """
    tokens = layers[0].shape[-1]
    reached = np.arange(tokens) == query
    found: list[tuple[NDArray[np.int32], ...]] = []
    dropped = 0.0
    for above in range(len(layers), 0, -1):
        further = np.zeros(tokens, bool)
        for part, rows in exact_rows(layers[above - 1], reached):
            chosen = np.flatnonzero(reached[part])
            own = part.start + chosen
            looked = rows[chosen].astype(np.float64)
            kept = _largest(looked, own, most)
            dropped = max(dropped, float(np.where(kept, 0, looked).sum(axis=-1).max()))
            capacity = (1 - residual) * looked
            capacity[np.arange(len(own)), own] += residual
            units = np.where(kept, np.rint(capacity * _UNIT), 0).astype(np.int32)
            row, key = np.nonzero(units)
            further[key] = True
            start, end = above * tokens + own[row], (above - 1) * tokens + key
            found.append((start.astype(np.int32), end.astype(np.int32), units[row, key]))
        reached = further
    return [np.concatenate(each) for each in zip(*found, strict=True)], dropped


def _largest(rows: Floats, own: NDArray[np.intp], most: int) -> NDArray[np.bool_]:
    """Return which keys are among the largest of their row, or the query's own."""
    if most == rows.shape[-1]:
        return np.ones(rows.shape, bool)
    kept = np.zeros(rows.shape, bool)
    np.put_along_axis(kept, np.argpartition(rows, -most, axis=-1)[:, -most:], True, axis=-1)
    kept[np.arange(len(own)), own] = True
    return kept


def _check_size(layers: int, tokens: int, most: int) -> None:
    if layers * tokens * most > _MOST_EDGES:
        fitting = max(1, _MOST_EDGES // (layers * tokens))
        raise MapTooLargeError(
            f"the graph of {layers} layers with {tokens} tokens that look at {most} keys each has "
            f"more than {_MOST_EDGES} edges. Keep only the keys that get most: keys={fitting} or "
            f"less, and a few input tokens: to=[…]"
        )


def _from_scipy() -> tuple[Any, Any]:
    """Return the solver and the type of its graphs."""
    try:
        graphs = importlib.import_module("scipy.sparse.csgraph")
        return graphs.maximum_flow, importlib.import_module("scipy.sparse").csr_matrix
    except ImportError as error:
        raise MissingDependencyError(
            "attention flow is computed by scipy, which is not installed: pip install scipy"
        ) from error
