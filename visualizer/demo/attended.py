"""A model's attention to pictures, and what is needed to draw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image

from visualizer import get_local
from visualizer.demo.loading import load_model, preprocess

__all__ = ["Attended", "attend_with_bundled_model"]


@dataclass(frozen=True, slots=True)
class Attended:
    """Pictures, and a model's attention to them.

    Attributes:
        pictures: What was shown.
        transform: What made the model's input of a picture.
        source: The function whose local was taken, and the local.
        maps: One for each layer, shape `(batch, head, token, token)`.
        grid: Rows and columns of patches.
        prefix_tokens: Tokens before the patches.
        named: What the model says of each picture.
    """

    pictures: Sequence[Image.Image]
    transform: Callable[[Image.Image], Any]
    source: str
    maps: list[NDArray[Any]]
    grid: tuple[int, int]
    prefix_tokens: int
    named: Sequence[str]


@torch.inference_mode()
def attend_with_bundled_model(pictures: Sequence[Image.Image]) -> Attended:
    """Show pictures to the bundled model, as one batch."""
    model = load_model()
    get_local.activate()
    get_local.clear()
    try:
        logits = model(torch.cat([preprocess(picture) for picture in pictures]))
        maps = list(get_local.cache["Attention.forward"])
    finally:
        get_local.deactivate()
    named = [str(digit) for digit in logits.argmax(1).tolist()]
    return Attended(pictures, preprocess, "attn of Attention.forward", maps, (12, 12), 1, named)
