"""What capturing attention adds to a model that torch.compile made one graph of."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks._attention_forward import over_plain
from benchmarks._interleave import interleave, time_rows
from benchmarks._models import forwards, make_bert, make_llama, token_ids
from benchmarks._report import Row

__all__ = ["compiled_rows"]

_OF_PLAIN = 1.05
_CALLS = 3


def compiled_rows(tokens: int, runs: int) -> list[Row]:
    """Return the times of forwards under inductor, plain and captured; warmed up before."""
    middle, short = max(16, tokens // 4), 16
    models: dict[str, tuple[Any, int]] = {
        f"Compiled, Llama of 6 layers, {tokens} tokens": (
            make_llama(layers=6, tokens=tokens),
            tokens,
        ),
        f"Compiled, BERT of 4 layers of 768, {middle} tokens": (
            make_bert(768, 12, layers=4),
            middle,
        ),
        f"Compiled, BERT-base, {short} tokens": (make_bert(768, 12), short),
    }
    rows = []
    for title, (model, count) in models.items():
        compiled: Any = torch.compile(model, fullgraph=True)
        found = interleave(forwards(compiled, token_ids(count), times=_CALLS), runs)
        rows += [*time_rows(title, found), *over_plain(title, found, _OF_PLAIN)]
    return rows
