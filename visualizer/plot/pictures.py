"""Pictures as arrays, and where in them the model looked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from visualizer.analysis.arrays import to_floats
from visualizer.errors import PictureError, ShapeError

__all__ = [
    "Crop",
    "Region",
    "Transform",
    "find_region",
    "open_picture",
    "to_picture",
    "to_rgb",
]

Crop = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""
Transform = Callable[[Image.Image], Any]
"""What makes a model's input of a picture."""

_SHORT_OF_EVEN: Final = 0.012
"""How far from even spacing a transform may put pixels, as a share of the side."""
_NEAR: Final = 0.25
"""Pixels from the edge of the picture within which an edge is taken for it."""
_REPEATS: Final = 8
"""How often a transform has to do the same before it counts as one without chance."""


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a picture, in pixels; the edges may lie between them."""

    left: float
    top: float
    right: float
    bottom: float

    def cell(self, index: int, grid: tuple[int, int]) -> Region:
        """Return one cell of a grid over the region; cells are counted row by row."""
        row, column = divmod(index, grid[1])
        width = (self.right - self.left) / grid[1]
        height = (self.bottom - self.top) / grid[0]
        left, top = self.left + column * width, self.top + row * height
        return Region(left, top, left + width, top + height)


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture from a file.

    Raises:
        PictureError: It is not there, or no picture, or broken.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except UnidentifiedImageError as error:
        raise PictureError(f"{os.fspath(path)} is not a picture that can be read") from error
    except (OSError, Image.DecompressionBombError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PictureError(f"can't read the picture {os.fspath(path)}: {reason}") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture of any mode in RGB, what is transparent on white."""
    if picture.mode.startswith(("I", "F")):  # 16 bits and more: conversion alone would clip
        values = np.asarray(picture, dtype=np.float64).clip(0)
        top = float(values.max(initial=0))
        limits = (65535,) if picture.mode.startswith("I;16") else (255, 65535)
        limits = (1, *limits) if picture.mode == "F" else limits
        limit = next((limit for limit in limits if top <= limit), top)
        return Image.fromarray(np.round(values * (255 / limit)).astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        above = picture.convert("RGBA")
        below = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(below, above).convert("RGB")
    return picture.convert("RGB")


def to_picture(image: Any) -> Image.Image:
    """Return a picture, an array, a tensor or a file as a PIL image in RGB.

    Arrays and tensors may be `(height, width)`, `(height, width, channel)` or
    `(channel, height, width)`, with a batch axis of size 1 before; uint8, or 0 to 1.

    Raises:
        PictureError: A shape that is no picture's, or values that are not brightness.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, str | os.PathLike):
        return to_rgb(open_picture(image))
    dtype = str(getattr(image, "dtype", ""))
    try:
        values = to_floats(image, "image")
    except ShapeError as error:
        raise PictureError(f"not a picture: {error}") from error
    shape = values.shape
    while values.ndim > 2 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 3 and values.shape[0] in (3, 4) and values.shape[-1] not in (1, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if (
        not (values.ndim == 2 or (values.ndim == 3 and values.shape[-1] in (3, 4)))
        or not values.size
    ):
        raise PictureError(
            f"image has shape {shape}; expected one picture: (height, width), "
            f"(height, width, 3) or (3, height, width)"
        )
    top = 255 if "int" in dtype or (isinstance(image, list) and values.max() > 1) else 1
    if dtype == "uint16" and values.max() > 255:
        top = 65535
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > top:
        raise PictureError(
            f"image has values from {values.min():.3g} to {values.max():.3g}; expected "
            f"0 to {top}. Is it normalised for the model? Pass the picture before that, or "
            f"undo it: image * std + mean"
        )
    return to_rgb(Image.fromarray(np.round(values * (255 / top)).astype(np.uint8)))


def find_region(
    picture: Image.Image,
    crop: Crop | None,
    transform: Transform | None,
) -> Region:
    """Return the part of the picture that the model saw.

    Args:
        picture: The picture.
        crop: That part, in the picture's pixels: left, top, right, bottom.
        transform: What made the model's input of the picture.
    Raises:
        PictureError: Both were given, the crop is not inside of the picture, or the transform does
            something else than to resize and to crop.
    """
    width, height = picture.size
    if crop is not None and transform is not None:
        raise PictureError("crop and transform say the same thing: pass one of them")
    if transform is not None:
        return _region_of(transform, picture.size)
    if crop is None:
        return Region(0, 0, width, height)
    if np.shape(crop) != (4,):
        raise PictureError(f"crop is {crop!r}; expected (left, top, right, bottom), in pixels")
    left, top, right, bottom = (float(edge) for edge in crop)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise PictureError(
            f"crop {tuple(crop)} does not lie inside of the picture, which is {width} pixels wide "
            f"and {height} high; expected (left, top, right, bottom)"
        )
    return Region(left, top, right, bottom)


def _region_of(transform: Callable[[Image.Image], Any], size: tuple[int, int]) -> Region:
    """Send pictures of known brightness through a transform, and see where they come out.

    Black and white tell what it does to brightness (it may normalise); a ramp from left to right
    and one from top to bottom then tell where in the picture each pixel of the result comes from.
    """
    width, height = size
    black, white = (_plane(transform, np.full((height, width), level)) for level in (0, 255))
    if np.shape(black) != np.shape(white) or np.abs(white - black).min() < 1e-6:
        raise PictureError(
            "transform gives the same for white pictures and for black ones, at least in places: "
            "it pads, or loses brightness. Pass the picture that the model saw, without transform"
        )
    edges = []
    for axis, length in ((1, width), (0, height)):
        ramp = (np.arange(length) + 0.5) * (255 / length)
        picture = np.broadcast_to(ramp if axis == 1 else ramp[:, None], (height, width))
        once, *again = (_plane(transform, picture) for _ in range(_REPEATS))
        if any(not np.array_equal(once, plane) for plane in again):
            raise PictureError(
                "transform is random: it treats the same picture differently from call to call. "
                "Pass the one for evaluation"
            )
        share = (once - black) / (white - black)
        edges.append(_edges(share, axis, length))
    (left, right), (top, bottom) = edges
    return Region(left, top, right, bottom)


def _plane(transform: Callable[[Image.Image], Any], values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the first channel of what a transform makes of a gray picture."""
    gray = Image.fromarray(np.round(values).astype(np.uint8)).convert("RGB")
    made = transform(gray)
    if isinstance(made, Mapping):  # transformers' image processors
        made = made.get("pixel_values")
    if isinstance(made, Image.Image):
        made = np.asarray(made.convert("RGB"))
    try:
        array = np.asarray(to_floats(made, "what transform returns"), dtype=np.float64)
    except ShapeError as error:
        raise PictureError(f"transform returns no picture: {error}") from error
    while array.ndim > 3 and len(array) == 1:
        array = array[0]
    if array.ndim == 3:
        array = array[0] if array.shape[0] in (1, 3, 4) else array[..., 0]
    if array.ndim != 2 or min(array.shape) < 2:
        raise PictureError(
            f"transform returns shape {array.shape}; expected one picture, as (3, height, width)"
        )
    return array


def _edges(share: NDArray[np.float64], axis: int, length: int) -> tuple[float, float]:
    """Fit a line through where the result's pixels come from; return where its ends do."""
    along = share.mean(axis=1 - axis)
    across = np.abs(share - (along[None] if axis == 1 else along[:, None])).max()
    centres = (np.arange(len(along)) + 0.5) / len(along)
    slope, start = np.polyfit(centres, along, 1)
    if slope <= 0 or max(across, np.abs(along - start - slope * centres).max()) > _SHORT_OF_EVEN:
        raise PictureError(
            "transform does more than to resize and to crop (it pads, flips, or turns): "
            "pass the picture that the model saw, without transform"
        )
    low, high = start * length, (start + slope) * length
    # The ramps have 255 steps: an edge this near to the picture's is the picture's.
    return low if low > _NEAR else 0.0, high if high < length - _NEAR else float(length)
