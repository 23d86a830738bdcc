"""Small transformers models that generate, of several families, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tests.attention_models.families import sharpen

__all__ = ["ENCODERS", "GENERATORS", "PROMPT", "STEPS", "attentions_of", "build", "prompt"]

STEPS, PROMPT = 8, 12
"""How many forwards of the decoder a generation is, and how long the prompt."""

_ENDLESS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
_SMALL = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    **_ENDLESS,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 16}
_TWO_SIDES = {
    "vocab_size": 100,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    **_ENDLESS,
}
_MIXED = ["sliding_attention", "full_attention"]


def _gpt2() -> Any:
    sizes = {"vocab_size": 100, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    return hf.GPT2LMHeadModel, hf.GPT2Config(**sizes, **_ENDLESS)


def _llama() -> Any:
    return hf.LlamaForCausalLM, hf.LlamaConfig(**_GROUPED)


def _mistral() -> Any:
    return hf.MistralForCausalLM, hf.MistralConfig(**_GROUPED, sliding_window=7)


def _qwen2() -> Any:
    window = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    return hf.Qwen2ForCausalLM, hf.Qwen2Config(**_SMALL, num_key_value_heads=2, **window)


def _gemma3() -> Any:
    config = hf.Gemma3TextConfig(**_GROUPED, sliding_window=7, layer_types=_MIXED)
    return hf.Gemma3ForCausalLM, config


def _t5() -> Any:
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    config = hf.T5Config(vocab_size=100, **sizes, decoder_start_token_id=1, **_ENDLESS)
    return hf.T5ForConditionalGeneration, config


def _bart() -> Any:
    return hf.BartForConditionalGeneration, hf.BartConfig(**_TWO_SIDES, max_position_embeddings=64)


GENERATORS: dict[str, Callable[[], Any]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "gemma3": _gemma3,
    "t5": _t5,
    "bart": _bart,
}
"""Of which the windows are shorter than the prompt, or between that and the whole."""

ENCODERS = {"t5": 2, "bart": 1}
"""How many layers the encoders have."""


def build(name: str, implementation: str = "sdpa") -> Any:
    """Return a model that generates, always with the same weights."""
    torch.manual_seed(0)
    kind, config = GENERATORS[name]()
    config._attn_implementation = implementation
    return sharpen(kind(config), 3 if name == "t5" else 10)  # whose scores are not scaled


def prompt(*, padded: bool = False, length: int = PROMPT) -> dict[str, Tensor]:
    """Return two texts; the second may be padded on the left."""
    ids = torch.randint(3, 90, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :4] = 0
    return {"input_ids": ids, "attention_mask": mask}


def attentions_of(generated: Any) -> list[Any]:
    """Return the maps that `generate` returns, in the order of the calls."""
    if not hasattr(generated, "decoder_attentions"):
        return [each for step in generated.attentions for each in step]
    steps = zip(generated.decoder_attentions, generated.cross_attentions, strict=True)
    layers = (pair for own, cross in steps for pair in zip(own, cross, strict=True))
    return [*generated.encoder_attentions, *(each for pair in layers for each in pair)]
