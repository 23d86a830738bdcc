"""Statistics of one head as their papers define them: plain loops over Python's floats."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

__all__ = [
    "at_offset",
    "confidence",
    "divergence",
    "effective_support",
    "flow",
    "for_each_head",
    "induction",
    "profile",
    "received",
    "sink_mass",
    "sparsity",
    "top_mass",
]

NAN = math.nan
Rows = list[list[float]]


def for_each_head(function: Any, weights: Any, *others: Any, **options: Any) -> Any:
    """Apply a function to each matrix of arrays of shape `(..., query, key)`."""
    arrays = np.broadcast_arrays(weights, *others)
    before = arrays[0].shape[:-2]
    results = [
        function(*(array[place].tolist() for array in arrays), **options)
        for place in np.ndindex(*before)
    ]
    return np.array(results, np.float64).reshape((*before, *np.shape(results[0])))


def sees(row: list[float]) -> bool:
    return sum(row) > 0


def average(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else NAN


def effective_support(rows: Rows) -> list[float]:
    totals = [math.fsum(row) for row in rows]
    return [
        math.prod((a / total) ** (-a / total) for a in row if a > 0) if total > 0 else NAN
        for row, total in zip(rows, totals, strict=True)
    ]


def top_mass(rows: Rows, k: int) -> list[float]:
    return [math.fsum(sorted(row)[len(row) - k :]) if sees(row) else NAN for row in rows]


def sparsity(rows: Rows, visible: Any, threshold: float, relative_to: str) -> list[float]:
    result = []
    for row, seen in zip(rows, visible, strict=True):
        count = sum(seen)
        if not (sees(row) and count):
            result.append(NAN)
            continue
        unit = {"maximum": max(row), "even": 1 / count, "row": 1.0}[relative_to]
        below = [a for a, one in zip(row, seen, strict=True) if one and a < threshold * unit]
        result.append(len(below) / count)
    return result


def confidence(rows: Rows, exclude: tuple[int, ...] = ()) -> float:
    kept = [[a for key, a in enumerate(row) if key not in exclude] for row in rows if sees(row)]
    return average([max(row) for row in kept])


def placed(rows: Rows) -> list[tuple[int, list[float]]]:
    """Return the rows that see a key, with the places of their queries, which are the last."""
    behind = len(rows[0]) - len(rows)
    return [(behind + query, row) for query, row in enumerate(rows) if sees(row)]


def at_offset(rows: Rows, offset: int, maxima: bool = False) -> float:
    found = []
    for place, row in placed(rows):
        if 0 <= place - offset < len(row):
            there = row[place - offset]
            found.append(float(there == max(row)) if maxima else there)
    return average(found)


def profile(rows: Rows, reach: int) -> list[float]:
    return [at_offset(rows, -offset) for offset in range(-reach, reach + 1)]


def induction(rows: Rows, tokens: list[int]) -> float:
    found = []
    for place, row in placed(rows):
        after = [j + 1 for j in range(place) if tokens[j] == tokens[place] >= 0]
        if after:
            found.append(math.fsum(row[key] for key in after))
    return average(found)


def received(rows: Rows) -> list[float]:
    return [average([row[key] for row in rows if sees(row)]) for key in range(len(rows[0]))]


def sink_mass(rows: Rows, sinks: int) -> float:
    return average([math.fsum(row[:sinks]) for row in rows if sees(row)])


def divergence(rows: Rows, others: Rows) -> float:
    """Jensen–Shannon, by Kullback and Leibler's divergences from the mixture."""
    found = []
    for row, other in zip(rows, others, strict=True):
        if sees(row) and sees(other):
            p = [a / math.fsum(row) for a in row]
            q = [a / math.fsum(other) for a in other]
            terms = [
                a * math.log(2 * a / (a + b)) / 2
                for one, two in ((p, q), (q, p))
                for a, b in zip(one, two, strict=True)
                if a > 0
            ]
            found.append(math.fsum(terms))
    return average(found)


def flow(layers: Any, query: int, to: int, residual: float = 0.5) -> float:
    """Maximum flow by Edmonds and Karp: along a shortest path, until there is none."""
    left: dict[Any, dict[Any, float]] = {}
    for above, rows in enumerate(layers, 1):
        for i, row in enumerate(rows):
            for j, a in enumerate(row):
                capacity = (1 - residual) * a + residual * (i == j)
                left.setdefault((above, i), {})[above - 1, j] = capacity
                left.setdefault((above - 1, j), {})[above, i] = 0.0
    source, sink, total = (len(layers), query), (0, to), 0.0
    while path := _path(left, source, sink):
        amount = min(left[a][b] for a, b in path)
        for a, b in path:
            left[a][b] -= amount
            left[b][a] += amount
        total += amount
    return total


def _path(left: Any, source: Any, sink: Any) -> list[tuple[Any, Any]]:
    came: dict[Any, Any] = {source: None}
    waiting = deque([source])
    while waiting and sink not in came:
        node = waiting.popleft()
        for other, capacity in left[node].items():
            if capacity > 1e-15 and other not in came:
                came[other] = node
                waiting.append(other)
    path = []
    node = sink
    while came.get(node) is not None:
        path.append((came[node], node))
        node = came[node]
    return path
