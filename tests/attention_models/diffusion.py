"""Small diffusers models of several kinds, from config, with random weights and peaked maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

__all__ = ["KINDS", "Kind", "autoencoder", "build", "clip", "flux", "sd3", "sharpen", "unet"]


@dataclass(frozen=True)
class Kind:
    """How to build a model of a kind, what to give it, and what is expected of it.

    Attributes:
        make: Returns the model.
        inputs: Returns keyword arguments, all but the timestep.
        shapes: Of its maps, `(query, key)`, by the end of the path of the modules.
        calls: How many attention calls a forward makes.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    shapes: dict[str, set[tuple[int, int]]]
    calls: int


def build(kind: Kind) -> nn.Module:
    """Return a model of a kind, always with the same weights."""
    torch.manual_seed(0)
    return sharpen(kind.make())


def sharpen(model: nn.Module, factor: float = 2.0) -> nn.Module:
    """Make a new model's attention peaked: its queries and keys are larger."""
    marks = ("to_q.", "to_k.", "add_q_proj.", "add_k_proj.", "norm_q.", "norm_added_q.")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(mark in name for mark in marks) and name.endswith("weight"):
                parameter.mul_(factor)
    return model.eval()


def unet(**options: Any) -> Any:
    """A UNet as Stable Diffusion's, over 8×8 latents, with attention at 8×8 and 4×4."""
    settings = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return diffusers.UNet2DConditionModel(**{**settings, **options})


def sd3() -> Any:
    """The transformer of Stable Diffusion 3.5: joint attention, and a second one of the image."""
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )


def flux() -> Any:
    """The transformer of Flux: two double blocks, two single ones, rotary positions."""
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )


def autoencoder() -> Any:
    """A VAE: its middle blocks attend with one head, over the image."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
    )


def clip(folder: Path, length: int) -> tuple[Any, Any]:
    """A tokenizer that knows cats and dogs, written to a folder, and a text encoder for it."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    ends = [f"{letter}</w>" for letter in letters]
    words = ["ca", "cat</w>", "do", "dog</w>", "<|startoftext|>", "<|endoftext|>"]
    places = {token: place for place, token in enumerate([*letters, *ends, *words])}
    (folder / "vocab.json").write_text(json.dumps(places))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nd o\ndo g</w>\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    config = CLIPTextConfig(
        vocab_size=len(places),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=length,
        bos_token_id=places["<|startoftext|>"],
        eos_token_id=places["<|endoftext|>"],
        pad_token_id=places["<|endoftext|>"],
    )
    return CLIPTokenizer(*files, model_max_length=length), CLIPTextModel(config).eval()


def _random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _latents(**more: Any) -> Callable[[], dict[str, Any]]:
    def inputs() -> dict[str, Any]:
        text = {"encoder_hidden_states": _random(2, 7, 32, seed=2)}
        return {"sample": _random(2, 4, 8, 8), **text, **more}

    return inputs


def _wide() -> dict[str, Any]:
    return {**_latents()(), "sample": _random(2, 4, 6, 10)}


def _hidden(seen: Tensor) -> Callable[[], dict[str, Any]]:
    def inputs() -> dict[str, Any]:
        return {**_latents()(), "encoder_attention_mask": seen}

    return inputs


def _sdxl() -> dict[str, Any]:
    return _latents(
        added_cond_kwargs={"text_embeds": _random(2, 32), "time_ids": _random(2, 6)},
    )()


def _sd3() -> dict[str, Any]:
    return {
        "hidden_states": _random(2, 4, 8, 8),
        "encoder_hidden_states": _random(2, 5, 32, seed=2),
        "pooled_projections": _random(2, 16, seed=3),
    }


def _flux() -> dict[str, Any]:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    places = torch.stack([torch.zeros(4, 4), rows, columns], -1).reshape(16, 3)
    return {
        "hidden_states": _random(2, 16, 4),
        "encoder_hidden_states": _random(2, 5, 32, seed=2),
        "pooled_projections": _random(2, 16, seed=3),
        "img_ids": places,
        "txt_ids": torch.zeros(5, 3),
    }


def _pixart() -> dict[str, Any]:
    return {
        "hidden_states": _random(2, 4, 8, 8),
        "encoder_hidden_states": _random(2, 6, 32, seed=2),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _transformer(cls: str, **options: Any) -> Callable[[], Any]:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "patch_size": 2}
    latents = {"in_channels": 4, "out_channels": 8, "sample_size": 8}
    return lambda: getattr(diffusers, cls)(**sizes, **latents, **options)


_BOTH = {"attn1": {(64, 64), (16, 16)}, "attn2": {(64, 7), (16, 7)}}
_ONLY_CROSS = {"attn1": {(64, 7), (16, 7), (16, 16)}, "attn2": {(64, 7), (16, 7)}}
_ADDED = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "attention_head_dim": (2, 4),
}
_SEEN = torch.tensor([[1.0] * 7, [1.0] * 3 + [0.0] * 4])

KINDS: dict[str, Kind] = {
    "unet": Kind(unet, _latents(), _BOTH, 14),
    "unet_wide": Kind(
        unet, _wide, {"attn1": {(60, 60), (15, 15)}, "attn2": {(60, 7), (15, 7)}}, 14
    ),
    "unet_padded": Kind(unet, _hidden(_SEEN), _BOTH, 14),
    "unet_only_cross": Kind(lambda: unet(only_cross_attention=True), _latents(), _ONLY_CROSS, 14),
    "unet_upcast": Kind(lambda: unet(upcast_attention=True), _latents(), _BOTH, 14),
    "sdxl": Kind(lambda: unet(**_ADDED), _sdxl, _BOTH, 22),
    "sd3": Kind(sd3, _sd3, {"attn": {(21, 21)}, "attn2": {(16, 16)}}, 5),
    "flux": Kind(flux, _flux, {"attn": {(21, 21)}}, 4),
    "pixart": Kind(
        _transformer(
            "PixArtTransformer2DModel",
            cross_attention_dim=16,
            caption_channels=32,
            use_additional_conditions=False,
        ),
        _pixart,
        {"attn1": {(16, 16)}, "attn2": {(16, 6)}},
        4,
    ),
    "dit": Kind(
        _transformer("DiTTransformer2DModel", num_embeds_ada_norm=10),
        lambda: {"hidden_states": _random(2, 4, 8, 8), "class_labels": torch.tensor([1, 2])},
        {"attn1": {(16, 16)}},
        2,
    ),
}
