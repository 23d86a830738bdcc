"""Captures of real and of odd models, for the tests of exports; and what they are held against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor, nn

import visualizer
from tests.attention_models.families import sharpen

__all__ = [
    "Hostile",
    "as_float",
    "bert",
    "captured_llama",
    "fresh_and_loaded",
    "llama",
    "odd_values",
]

TOKENS = torch.tensor([[5, 17, 3, 42, 8, 11]])


def llama(implementation: str = "sdpa", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a model like Qwen2, with grouped keys."""
    torch.manual_seed(0)
    config = hf.Qwen2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    made = hf.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    return sharpen(made).to(dtype)


def bert(implementation: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return sharpen(hf.AutoModel.from_config(config, attn_implementation=implementation))


def captured_llama(
    implementation: str = "sdpa", dtype: torch.dtype = torch.float32, forwards: int = 1
) -> Any:
    """Return a capture of its attention and mlp, its last norm, and what these are given."""
    model = llama(implementation, dtype)
    wanted = ["model.layers.*.self_attn", "model.layers.*.mlp", "model.norm"]
    with torch.no_grad(), visualizer.capture(model, modules=wanted, inputs=True) as captured:
        for _ in range(forwards):
            model(TOKENS)
    return captured


def fresh_and_loaded(captured: Any, folder: Path) -> list[Any]:
    """Return a capture, and the same as it comes from the disk."""
    captured.save(folder / "store")
    return [captured, visualizer.load(folder / "store")]


def as_float(tensor: Tensor) -> np.ndarray:
    """Return a tensor as entries have it."""
    wide = tensor.float() if tensor.dtype.itemsize < 4 else tensor
    return wide.numpy()


class Hostile(nn.Module):
    """Modules whose names are paths, and worse."""

    NAMES = ("../x", "/etc/x", "a\0b", "x" * 300, "con", "A", "a", "é", "~", "-", " ", "x.pt/..\\y")

    def __init__(self) -> None:
        super().__init__()
        for name in self.NAMES:
            self._modules[name] = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for module in self._modules.values():
            x = module(x)
        return x


class Returning(nn.Module):
    """Returns what it was made for."""

    def __init__(self, value: Callable[[], Any]) -> None:
        super().__init__()
        self.part = nn.Identity()
        self.value = value

    def forward(self, x: Tensor) -> Any:
        return self.part(self.value())


def odd_values(value: Callable[[], Any]) -> Any:
    """Return a capture of what a module returns, whatever that is."""
    model = Returning(value)
    with torch.no_grad(), visualizer.capture(model, modules=["part"]) as captured:
        model(torch.zeros(1))
    return captured
