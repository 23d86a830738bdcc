"""Models of transformers with random weights, and forwards of them that are captured, or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._interleave import cpu_time
from visualizer import capture
from visualizer.captured import Captured

__all__ = [
    "CONFIRMED",
    "DIM",
    "HEADS",
    "KEY_HEADS",
    "OPEN",
    "OPENED_ANEW",
    "count_layers",
    "forwards",
    "make_bert",
    "make_llama",
    "token_ids",
]

HEADS, KEY_HEADS, DIM = 8, 2, 64
"""Of the Llama."""

OPEN = "captured, the block open"
OPENED_ANEW = "captured, a block for each forward"
CONFIRMED = "captured, a block for each forward, all maps confirmed"

_VOCABULARY = 1000


def make_llama(attention: str = "sdpa", *, layers: int = 2, tokens: int = 4096) -> nn.Module:
    """Return a Llama for so many tokens; its weights do not depend on how it attends."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=HEADS * DIM,
        intermediate_size=1408,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=DIM,
        max_position_embeddings=max(4096, tokens),
        attn_implementation=attention,
        use_cache=False,
    )
    model: nn.Module = LlamaModel(config).eval()
    return model


def make_bert(
    hidden: int, heads: int, attention: str = "sdpa", *, layers: int = 12, tokens: int = 512
) -> nn.Module:
    """Return a BERT for so many tokens; its weights do not depend on how it attends."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max(512, tokens),
        attn_implementation=attention,
    )
    model: nn.Module = BertModel(config).eval()
    return model


def token_ids(count: int) -> Tensor:
    """Return a batch of one random text."""
    return torch.randint(_VOCABULARY, (1, count), generator=torch.Generator().manual_seed(1))


def count_layers(model: nn.Module) -> int:
    """Return how many layers a model of transformers has."""
    config: Any = model.config
    return int(config.num_hidden_layers)


def forwards(model: nn.Module, ids: Tensor, times: int = 1) -> dict[str, Callable[[], float]]:
    """Return contenders: the forward, and the same captured in three ways.

    Args:
        model: The model.
        ids: What it is called with.
        times: How many calls a run is.
    """

    def forward() -> Any:
        return model(ids)

    def within_new_block() -> Captured:
        with capture(model) as captured:
            forward()
        _check(captured, 1)
        return captured

    def confirmed() -> None:
        if not all(each.confirmed for each in within_new_block().attention):
            raise RuntimeError("a map was not confirmed")

    def within_open_block() -> float:
        with ExitStack() as stack:
            captured = stack.enter_context(capture(model))
            forward()  # of which the first calls are checked

            def forwards_and_leave() -> None:
                for _ in range(times):
                    forward()
                stack.close()  # what was put off until then counts

            elapsed = cpu_time(forwards_and_leave) / times
        _check(captured, 1 + times)
        return elapsed

    def _check(captured: Captured, calls: int) -> None:
        maps, expected = len(captured.attention), calls * count_layers(model)
        if maps != expected:
            raise RuntimeError(f"{maps} attention maps were captured instead of {expected}")

    return {
        "plain": lambda: cpu_time(forward, times),
        OPEN: within_open_block,
        OPENED_ANEW: lambda: cpu_time(within_new_block, times),
        CONFIRMED: lambda: cpu_time(confirmed, times),
    }
