"""Weights and pictures to draw, and what to ask a figure."""

from __future__ import annotations

import io
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
Image: Any = pytest.importorskip("PIL.Image", reason="pillow is not installed")


def weights(*shape: int, seed: int = 0) -> Any:
    """Random attention weights of a shape, uneven as real ones are."""
    scores = np.random.default_rng(seed).normal(size=shape) * 2
    raised = np.exp(scores)
    return raised / raised.sum(axis=-1, keepdims=True)


def picture(width: int = 224, height: int = 224, mode: str = "RGB") -> Any:
    """A picture that is bright at its top left."""
    across = 255 - np.arange(width) * 255 // width
    down = 255 - np.arange(height) * 255 // height
    bright = np.minimum(across[None], down[:, None]).astype(np.uint8)
    return Image.fromarray(bright).convert("RGB").convert(mode)


def save(figure: Any) -> Any:
    """Draw a figure to the last pixel; return them, shape `(height, width, 3)`."""
    png = io.BytesIO()
    getattr(figure, "figure", figure).savefig(png, format="png")
    return np.asarray(Image.open(png).convert("RGB"))


def colorbars(figure: Any) -> list[Any]:
    """The axes of a figure that are colorbars."""
    return [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]


def panels(figure: Any) -> list[Any]:
    """The axes of a figure that are none."""
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def edges(image: Any) -> tuple[float, ...]:
    """Where an image lies: left, top, right, bottom."""
    left, right, bottom, top = image.get_extent()
    return (left, top, right, bottom)


def box(ax: Any) -> tuple[float, ...]:
    """Where the one empty rectangle lies: left, top, right, bottom."""
    (found,) = [patch for patch in ax.patches if not patch.get_fill()]
    left, top = found.get_xy()
    return (left, top, left + found.get_width(), top + found.get_height())
