"""A row of a map that could not be held as a whole, on demand."""

from __future__ import annotations

import statistics

from benchmarks._interleave import cpu_time
from benchmarks._models import make_llama, token_ids
from benchmarks._report import Row
from visualizer import capture
from visualizer.attention import AttentionMap

__all__ = ["row_rows"]

_MS = 50.0
_OFF_BY = 1e-5


def row_rows(tokens: int, runs: int) -> list[Row]:
    """Return how long the last rows take, with all heads, and how far their sums are from 1."""
    model = make_llama(tokens=tokens)
    with capture(model) as captured:
        elapsed = cpu_time(lambda: model(token_ids(tokens)))
    first = captured.attention[0]
    found = [_read(first, tokens - 1 - number) for number in range(runs + 1)]
    times = [seconds * 1e3 for seconds, _ in found]
    title = f"Llama, {tokens} tokens"
    median = statistics.median(times[1:])
    return [
        Row(f"{title}, captured forward", elapsed * 1e3, "ms"),
        Row(f"{title}, first row of a map", times[0], "ms"),
        Row(f"{title}, one row, all heads", median, "ms", median - min(times), target=_MS),
        Row(f"{title}, row sums are off by", max(off for _, off in found), "", target=_OFF_BY),
    ]


def _read(found: AttentionMap, query: int) -> tuple[float, float]:
    rows = []
    seconds = cpu_time(lambda: rows.append(found.row(query)))
    return seconds, float(abs(rows[0].sum(-1, dtype="float64") - 1).max())
