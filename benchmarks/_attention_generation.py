"""What a captured generation holds, beside the rows of its maps, and what it adds to its time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks._interleave import cpu_time, interleave, ratio_rows, time_rows
from benchmarks._memory import live_bytes
from benchmarks._models import DIM, HEADS, KEY_HEADS, count_layers, token_ids
from benchmarks._report import Row
from visualizer import capture
from visualizer.captured import Captured

__all__ = ["generation_rows"]

_STEPS = 63
_OF_ROWS = 1.1
_MB = 1e6
_FLOAT = 4
_CACHES = {
    "dynamic cache": (False, None),
    "static cache": (False, "static"),
    "sliding cache": (True, None),
    "static sliding cache": (True, "static"),
}
"""Whether the model has a window, a quarter of the prompt, and what `generate` is told."""


def generation_rows(tokens: int, runs: int) -> list[Row]:
    """Return bytes that are held after a prompt and 63 steps, and times, for each cache."""
    rows = []
    for name, (slides, cache) in _CACHES.items():
        model = _make_model(tokens, tokens // 4 if slides else None)
        title = f"generation, {name}, {tokens} tokens"
        rows += [
            *_held_rows(title, model, tokens, cache),
            *_times(title, model, tokens, cache, runs),
        ]
    return rows


def _make_model(tokens: int, window: int | None) -> Any:
    """Return a model of the Llama's sizes that generates without an end."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=1000,
        hidden_size=HEADS * DIM,
        intermediate_size=1408,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=DIM,
        max_position_embeddings=max(4096, tokens + _STEPS + 1),
        sliding_window=window,
        pad_token_id=0,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    return MistralForCausalLM(config).eval()


def _generate(model: Any, tokens: int, cache: str | None) -> Callable[[], Tensor]:
    ids, count = token_ids(tokens), _STEPS + 1
    options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}

    def generate() -> Tensor:
        made: Tensor = model.generate(
            ids, attention_mask=torch.ones_like(ids), cache_implementation=cache, **options
        )
        model._cache = None  # a static one is kept for the next generation
        return made

    return generate


def _held_rows(title: str, model: Any, tokens: int, cache: str | None) -> list[Row]:
    generate = _generate(model, tokens, cache)
    output = generate()  # what is made once does not count
    before = live_bytes()
    with capture(model) as captured:
        output = generate()
    live, told = live_bytes() - before, captured.nbytes
    del output
    rows = _bytes_of_rows(captured, model)
    return [
        Row(f"{title}, captured.nbytes", told / _MB, "MB"),
        Row(f"{title}, rows of all maps", rows / _MB, "MB"),
        Row(f"{title}, captured.nbytes / rows", told / rows, "x", target=_OF_ROWS),
        Row(
            f"{title}, storages that capturing left alive / rows", live / rows, "x", target=_OF_ROWS
        ),
    ]


def _bytes_of_rows(captured: Captured, model: Any) -> int:
    maps = list(captured.attention)
    if len(maps) != (expected := (_STEPS + 1) * count_layers(model)):
        raise RuntimeError(f"{len(maps)} attention maps were captured instead of {expected}")
    return sum(_FLOAT * math.prod(each.shape) for each in maps)


def _times(title: str, model: Any, tokens: int, cache: str | None, runs: int) -> list[Row]:
    generate = _generate(model, tokens, cache)

    def captured() -> None:
        with capture(model):
            generate()

    contenders = {"plain": lambda: cpu_time(generate), "captured": lambda: cpu_time(captured)}
    found = interleave(contenders, runs)
    return [
        *time_rows(title, found),
        *ratio_rows(f"{title}, captured / plain", found["captured"], found["plain"]),
    ]
