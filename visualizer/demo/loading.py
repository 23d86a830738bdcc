"""The model and the pictures that come with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from visualizer.demo.model import VisionTransformer
from visualizer.demo.scenes import SIDE, Scenes

__all__ = ["FILES", "MEAN", "STD", "load_model", "load_scenes", "preprocess"]

FILES: Final = Path(__file__).parent / "files"
MEAN: Final = 0.25
"""What is subtracted from brightness, 0 to 1 …"""
STD: Final = 0.35
"""… and what it is divided by then."""


def load_model() -> VisionTransformer:
    """Return the bundled vision transformer, trained, in eval mode.

    Its attention has 6 layers and 6 heads over 145 tokens: CLS, then 12×12 patches.
    """
    model = VisionTransformer()
    model.load_state_dict(load_file(FILES / "digits_vit.safetensors"))
    return model.eval()


def load_scenes() -> Scenes:
    """Return the bundled held-out scenes: digits that the model has never seen."""
    described = json.loads((FILES / "scenes.json").read_text(encoding="utf-8"))
    pictures = []
    for scene in described:
        with Image.open(FILES / scene["file"]) as picture:
            pictures.append(np.asarray(picture))
    labels = np.array([scene["label"] for scene in described])
    boxes = np.array([scene["box"] for scene in described])
    return Scenes(np.stack(pictures), labels, boxes)


def preprocess(picture: Image.Image) -> Tensor:
    """Return a picture as the model takes it: gray, the centre square, 96×96, normalised.

    Returns:
        Shape `(1, 1, 96, 96)`, float32.
    """
    gray = picture.convert("L")
    square = min(gray.size)
    left, top = (gray.width - square) / 2, (gray.height - square) / 2
    box = (left, top, left + square, top + square)
    resized = gray.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    brightness = torch.from_numpy(np.asarray(resized, dtype=np.float32)) / 255
    return ((brightness - MEAN) / STD)[None, None]
