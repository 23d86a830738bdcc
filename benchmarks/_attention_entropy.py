"""The entropy of all rows of a map that is never there, against one forward of attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks._interleave import cpu_time, interleave, ratio_rows, time_rows
from benchmarks._memory import can_measure_peaks, peak_bytes
from benchmarks._report import Row
from visualizer import capture
from visualizer.attention import AttentionMap

__all__ = ["captured_map", "entropy_rows"]

_HEADS, _DIM = 8, 64
_OF_SDPA = 1.3
_PEAK_MB = 128.0
_NATS = 5e-5
_SAMPLE = 256
"""Rows that are computed in float64."""


def captured_map(tokens: int) -> AttentionMap:
    """Return the map of a call of attention; its heads go from spread out to peaked."""
    with capture() as captured:
        _attend(*_inputs(tokens))
    return captured.attention[0]


def entropy_rows(tokens: int, runs: int) -> list[Row]:
    """Return time, peak and error of the entropy."""
    title = f"entropy, {tokens} tokens"
    query, key, value = _inputs(tokens)
    found = captured_map(tokens)
    contenders = {
        "one SDPA forward": lambda: cpu_time(lambda: _attend(query, key, value)),
        "of all rows": lambda: cpu_time(found.entropy),
    }
    timed = interleave(contenders, runs)
    ours, theirs = timed["of all rows"], timed["one SDPA forward"]
    return [
        *time_rows(title, timed),
        *ratio_rows(f"{title}, of all rows / one SDPA forward", ours, theirs, _OF_SDPA),
        _peak_row(title, tokens, min(3, runs)),
        Row(f"{title}, error against float64", _error(found, query, key), "nats", target=_NATS),
    ]


def _inputs(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, _HEADS, tokens, _DIM, generator=generator)
    return query * torch.arange(1, _HEADS + 1).view(-1, 1, 1), key, value


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def _peak_row(title: str, tokens: int, repeats: int) -> Row:
    name = f"{title}, extra peak"
    if not can_measure_peaks():
        return Row(name, left_out="the peak of the resident memory is read from Linux's /proc")
    return Row(name, peak_bytes("entropy", tokens, repeats) / 1e6, "MB", target=_PEAK_MB)


def _error(found: AttentionMap, query: Tensor, key: Tensor) -> float:
    """Return the largest error of a random sample of rows."""
    entropy = found.entropy()
    generator = torch.Generator().manual_seed(1)
    heads = torch.randint(_HEADS, (_SAMPLE,), generator=generator).tolist()
    rows = torch.randint(query.shape[2], (_SAMPLE,), generator=generator).tolist()
    errors = [
        abs(float(entropy[0, head, row]) - _exact(query[0, head, row], key[0, head, : row + 1]))
        for head, row in zip(heads, rows, strict=True)
    ]
    return max(errors)


def _exact(query: Tensor, keys: Tensor) -> float:
    weights = torch.softmax(keys.double() @ query.double() / _DIM**0.5, -1)
    return float(torch.special.entr(weights).sum())
