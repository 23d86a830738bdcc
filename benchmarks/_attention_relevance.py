"""A row of relevance: captured under the fused kernel, beside eager attention and autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks._interleave import cpu_time, interleave, ratio_rows, time_rows
from benchmarks._memory import can_measure_peaks, peak_bytes
from benchmarks._models import make_bert, token_ids
from benchmarks._report import Row
from visualizer import capture
from visualizer.analysis import relevance

__all__ = ["captured_row", "eager_row", "relevance_rows"]

_MB = 1e6
_HIDDEN, _HEADS, _LAYERS = 512, 8, 2
_OF_EAGER_TIME = 0.7
_OF_EAGER_PEAK = 1 / 10
_ERROR = 1e-6


def relevance_rows(tokens: int, runs: int) -> list[Row]:
    """Return the times, the peaks and the difference of forward, backward and one row."""
    title = f"Relevance row, BERT of {_LAYERS} layers and {_HEADS} heads, {tokens} tokens"
    ours, eager = captured_row(tokens), eager_row(tokens)
    found = interleave({"captured": lambda: cpu_time(ours), "eager": lambda: cpu_time(eager)}, runs)
    error = float((ours() - eager()).abs().max())
    return [
        *time_rows(title, found),
        *ratio_rows(
            f"{title}, captured / eager", found["captured"], found["eager"], _OF_EAGER_TIME
        ),
        Row(f"{title}, largest difference", error, "", target=_ERROR),
        *_peak_rows(title, tokens, min(3, runs)),
    ]


def captured_row(tokens: int) -> Callable[[], Tensor]:
    """Return what computes the row of the first token from captured maps."""
    model, ids = _model("sdpa", tokens), token_ids(tokens)

    @torch.enable_grad()
    def work() -> Tensor:
        with capture(model, gradients=True) as captured:
            _outcome(model(ids)).backward()
        row = relevance(captured.attention, query=0)
        model.zero_grad()
        return torch.from_numpy(row)

    return work


def eager_row(tokens: int) -> Callable[[], Tensor]:
    """Return what computes it from the maps that eager attention returns, and their gradients."""
    model, ids = _model("eager", tokens), token_ids(tokens)

    @torch.enable_grad()
    def work() -> Tensor:
        output = model(ids, output_attentions=True)
        for each in output.attentions:
            each.retain_grad()
        _outcome(output).backward()
        row = torch.zeros(tokens)
        row[0] = 1
        with torch.no_grad():
            for each in reversed(output.attentions):
                row = row + row @ (each.grad * each).clamp(min=0).mean(1)[0]
        model.zero_grad()
        return row

    return work


def _model(attention: str, tokens: int) -> Any:
    return make_bert(_HIDDEN, _HEADS, attention, layers=_LAYERS, tokens=tokens)


def _outcome(output: Any) -> Tensor:
    first: Tensor = output.last_hidden_state[0, 0]
    return first.pow(3).sum()


def _peak_rows(title: str, tokens: int, repeats: int) -> list[Row]:
    ratio = f"{title}, peak, captured / eager"
    if not can_measure_peaks():
        return [Row(ratio, left_out="the peak of the resident memory is read from Linux's /proc")]
    ours = peak_bytes("relevance", tokens, repeats)
    eager = peak_bytes("eager relevance", tokens, repeats)
    return [
        Row(f"{title}, peak, captured", ours / _MB, "MB"),
        Row(f"{title}, peak, eager", eager / _MB, "MB"),
        Row(ratio, ours / eager, "x", target=_OF_EAGER_PEAK),
    ]
