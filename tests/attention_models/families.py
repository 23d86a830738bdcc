"""Small transformers models of many families, from config, with random weights and peaked maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

__all__ = ["FAMILIES", "Family", "build", "sharpen"]


@dataclass(frozen=True)
class Family:
    """How to build a model of a family and what to give it.

    Attributes:
        config: Returns the model's config.
        inputs: Returns keyword arguments; takes whether some of them are padding.
        calls: How many attention calls a forward makes.
        weights: Where eager attention computes its weights: a function, and its local.
        fused: Whether the model has a fused path.
        can_pad: Whether padding means anything to it.
        left: Whether it is padded on the left, so that there are queries that see nothing.
    """

    config: Callable[[], Any]
    inputs: Callable[[bool], dict[str, Any]]
    calls: int
    weights: tuple[str, str]
    fused: bool = True
    can_pad: bool = True
    left: bool = False


def build(family: Family, implementation: str) -> nn.Module:
    """Return a family's model, always with the same weights."""
    torch.manual_seed(0)
    config = family.config()
    return sharpen(hf.AutoModel.from_config(config, attn_implementation=implementation))


def sharpen(model: nn.Module, factor: float = 10.0) -> nn.Module:
    """Make a new model's attention peaked: its queries and keys are larger, its biases not 0."""
    marks = ("q_proj", "k_proj", "query", "key", "qkv", "c_attn", ".q.", ".k.", "in_proj")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(mark in f".{name}" for mark in marks) and parameter.dim() > 1:
                parameter.mul_(factor)
            elif "bias" in name and "relative" in name or "sinks" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _tokens(batch: int = 2, length: int = 24) -> Tensor:
    return torch.randint(3, 90, (batch, length), generator=torch.Generator().manual_seed(1))


def _text(padded: bool) -> dict[str, Any]:
    ids = _tokens()
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 15:] = 0
    return {"input_ids": ids, "attention_mask": mask} if padded else {"input_ids": ids}


def _left(padded: bool) -> dict[str, Any]:
    """Pad on the left, as decoders are."""
    found = _text(False)
    if padded:
        found["attention_mask"] = torch.ones_like(found["input_ids"])
        found["attention_mask"][1, :9] = 0
    return found


def _both(padded: bool) -> dict[str, Any]:
    return {**_text(padded), "decoder_input_ids": _tokens(length=11)}


def _speech(padded: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 8, 40, generator=generator)
    return {"input_features": features, "decoder_input_ids": _tokens(length=11)}


def _picture(size: int = 32) -> Callable[[bool], dict[str, Any]]:
    def inputs(padded: bool) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        return {"pixel_values": torch.randn(2, 3, size, size, generator=generator)}

    return inputs


def _clip(padded: bool) -> dict[str, Any]:
    return {**_text(padded), **_picture()(padded)}


_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 16}


def _eager(name: str) -> tuple[str, str]:
    """Return where transformers' eager attention of a model has its weights."""
    return f"transformers.models.{name}.modeling_{name}:eager_attention_forward", "attn_weights"


def _falcon(variable: str) -> tuple[str, str]:
    return "transformers.models.falcon.modeling_falcon:FalconAttention.forward", variable


_TEXT = {**_SMALL, "max_position_embeddings": 64}
_PATCHES = {**_SMALL, "image_size": 32, "patch_size": 8}
_TWO_SIDES = {
    "vocab_size": 100,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_FALCON = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


def _gpt2() -> Any:
    return hf.GPT2Config(vocab_size=100, n_positions=64, n_embd=64, n_layer=3, n_head=4)


def _qwen2() -> Any:
    small = {**_SMALL, "num_key_value_heads": 2}
    return hf.Qwen2Config(**small, use_sliding_window=True, sliding_window=6, max_window_layers=1)


def _gemma2() -> Any:
    capped = {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0}
    return hf.Gemma2Config(**_GROUPED, **capped, sliding_window=8)


def _gpt_oss() -> Any:
    return hf.GptOssConfig(
        **{**_GROUPED, "intermediate_size": 64},
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


def _clip_config() -> Any:
    text = {**_TEXT, "projection_dim": 32}
    vision = {**_PATCHES, "projection_dim": 32}
    return hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)


def _swin() -> Any:
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "window_size": 4}
    return hf.SwinConfig(**sizes, depths=[2, 2], num_heads=[2, 4])


def _whisper() -> Any:
    sizes = {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 32}
    return hf.WhisperConfig(**_TWO_SIDES, **sizes)


def _t5() -> Any:
    return hf.T5Config(vocab_size=100, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4)


def _albert() -> Any:
    return hf.AlbertConfig(**_TEXT, embedding_size=32)


def _bloom() -> Any:
    return hf.BloomConfig(vocab_size=100, hidden_size=64, n_layer=3, n_head=4)


FAMILIES: dict[str, Family] = {
    "gpt2": Family(_gpt2, _left, 3, _eager("gpt2"), left=True),
    "bert": Family(lambda: hf.BertConfig(**_TEXT), _text, 3, _eager("bert")),
    "roberta": Family(lambda: hf.RobertaConfig(**_TEXT), _text, 3, _eager("roberta")),
    "albert": Family(_albert, _text, 3, _eager("albert")),
    "llama": Family(lambda: hf.LlamaConfig(**_GROUPED), _left, 3, _eager("llama"), left=True),
    "qwen2": Family(_qwen2, _left, 3, _eager("qwen2"), left=True),
    "gemma2": Family(_gemma2, _left, 3, _eager("gemma2"), fused=False, left=True),
    "gpt_oss": Family(_gpt_oss, _left, 3, _eager("gpt_oss"), fused=False, left=True),
    "t5": Family(_t5, _both, 6, _eager("t5")),
    "bart": Family(
        lambda: hf.BartConfig(**_TWO_SIDES, max_position_embeddings=64), _both, 6, _eager("bart")
    ),
    "whisper": Family(_whisper, _speech, 6, _eager("whisper"), can_pad=False),
    "vit": Family(lambda: hf.ViTConfig(**_PATCHES), _picture(), 3, _eager("vit"), can_pad=False),
    "dinov2": Family(
        lambda: hf.Dinov2Config(**_PATCHES), _picture(), 3, _eager("dinov2"), can_pad=False
    ),
    "swin": Family(_swin, _picture(), 4, _eager("swin"), can_pad=False),
    "clip": Family(_clip_config, _clip, 6, _eager("clip")),
    "falcon": Family(
        lambda: hf.FalconConfig(**_FALCON), _left, 3, _falcon("attention_scores"), left=True
    ),
    "falcon_alibi": Family(
        lambda: hf.FalconConfig(**_FALCON, alibi=True),
        _left,
        3,
        _falcon("attention_probs"),
        left=True,
    ),
    "bloom": Family(
        _bloom,
        _left,
        3,
        ("transformers.models.bloom.modeling_bloom:BloomAttention.forward", "attention_probs"),
        fused=False,
        left=True,
    ),
}
