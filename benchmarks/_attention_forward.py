"""What capturing attention adds to a forward: of a long text, and of a short one."""

from __future__ import annotations

from benchmarks._interleave import Runs, cpu_time, interleave, ratio_rows, time_rows
from benchmarks._models import (
    CONFIRMED,
    OPEN,
    OPENED_ANEW,
    forwards,
    make_bert,
    make_llama,
    token_ids,
)
from benchmarks._report import Row

__all__ = ["bert_rows", "llama_rows", "over_plain"]

_OF_PLAIN = 1.05
_OF_PLAIN_SHORT = 1.10
_EAGER = "eager with output_attentions"
_BERTS = {"BERT, 12 layers of 256": (256, 4, 20), "BERT-base": (768, 12, 8)}
"""Width, heads, and how many forwards a run is: enough for work that was put off to come due."""


def llama_rows(tokens: int, runs: int) -> list[Row]:
    """Return the times of a Llama's forward, plain, captured and eager."""
    ids = token_ids(tokens)
    contenders = forwards(make_llama(tokens=tokens), ids)
    eager = make_llama("eager", tokens=tokens)
    contenders[_EAGER] = lambda: cpu_time(lambda: eager(ids, output_attentions=True))
    title = f"Llama, {tokens} tokens"
    found = interleave(contenders, runs)
    return [
        *time_rows(title, found),
        *over_plain(title, found, _OF_PLAIN),
        Row(f"{title}, eager / plain", found[_EAGER].ms / found["plain"].ms, "x"),
    ]


def bert_rows(tokens: int, runs: int) -> list[Row]:
    """Return the times of short forwards, plain and captured."""
    rows = []
    for name, (hidden, heads, calls) in _BERTS.items():
        title = f"{name}, {tokens} tokens"
        contenders = forwards(make_bert(hidden, heads), token_ids(tokens), times=calls)
        found = interleave(contenders, runs)
        rows += [*time_rows(title, found), *over_plain(title, found, _OF_PLAIN_SHORT)]
    return rows


def over_plain(title: str, found: dict[str, Runs], target: float) -> list[Row]:
    """Return what each way of capturing takes, over the plain forward."""
    plain, confirmed = found["plain"], found[CONFIRMED]
    rows = [
        row
        for name in (OPEN, OPENED_ANEW)
        for row in ratio_rows(f"{title}, {name} / plain", found[name], plain, target)
    ]
    return [*rows, *ratio_rows(f"{title}, {CONFIRMED} / plain", confirmed, plain)]
