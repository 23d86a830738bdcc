"""The small functions of the original notebook that its figures were made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from visualizer.analysis.arrays import to_floats
from visualizer.analysis.grids import Grid, rows_and_columns
from visualizer.errors import NotWeightsError, PictureError, ShapeError
from visualizer.plot.drawing import SMOOTH
from visualizer.plot.heads import panels_for
from visualizer.plot.pictures import Region, to_picture, to_rgb

__all__ = ["cls_padding", "gray2rgb", "grid_show"]


def grid_show(to_shows: Sequence[tuple[Any, str]], cols: int) -> matplotlib.figure.Figure:
    """Draw pictures or matrices with titles, in rows of `cols`.

    Args:
        to_shows: Pairs of an image and its title. A PIL image or an array `(height, width, 3)` is
            drawn as it is, an array `(height, width)` in colours.
        cols: Panels in a row.
    Returns:
        The figure.
    Raises:
        ShapeError: No pairs, or images of another shape.
        OutOfRangeError: `cols` below 1.
    """
    pairs = list(to_shows)
    if not pairs or any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in pairs):
        raise ShapeError("to_shows must hold pairs of an image and its title, at least one")
    figure, axes = panels_for(len(pairs), cols, 2.6, 2.6)
    for ax, (image, title) in zip(axes, pairs, strict=True):
        if isinstance(image, Image.Image):
            ax.imshow(np.asarray(to_rgb(image)), origin="upper", interpolation=SMOOTH)
        else:
            array = to_floats(image, "an image of to_shows")
            if array.ndim == 2:
                ax.imshow(array, cmap="viridis", origin="upper", interpolation=SMOOTH)
            else:
                shown = np.asarray(to_picture(image))
                ax.imshow(shown, origin="upper", interpolation=SMOOTH)
        ax.set_title(str(title), parse_math=False)
        ax.set_xticks([])
        ax.set_yticks([])
    return figure


def gray2rgb(image: Any) -> NDArray[Any]:
    """Return a gray picture as an array with three channels, one in colour as it is.

    Args:
        image: A PIL image, or an array or tensor `(height, width)`, `(height, width, 1)` or
            `(height, width, 3)` of any numeric type, which stays.
    Returns:
        Shape `(height, width, 3)`.
    Raises:
        PictureError: Another shape.
    """
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    array = np.asarray(image.numpy(force=True) if hasattr(image, "numpy") else image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise PictureError(
            f"image has shape {array.shape}; expected (height, width) or (height, width, 3)"
        )
    return np.repeat(array, 3 // array.shape[-1], axis=-1)


def cls_padding(
    image: Any, mask: Any, cls_weight: float, grid_size: Grid
) -> tuple[Image.Image, NDArray[np.float64], NDArray[np.float64]]:
    """Put a column at the left of a picture, and of a map over it, with CLS in its top tile.

    Args:
        image: A PIL image, an array, a tensor or a file.
        mask: Weights over the picture, shape `(height, width)` in its pixels, or a PIL image.
        cls_weight: Weight of CLS, on the same scale.
        grid_size: Rows and columns of patches, or one number for both: the column is as wide, and
            the tile as large, as a patch.
    Returns:
        The picture with the column; the mask with it, divided by the largest of its weights and
        that of CLS; and white of shape `(height, width, 4)` that hides the column below the tile.
    Raises:
        ShapeError: The mask is not as large as the picture.
        NotWeightsError: Negative weights.
    """
    picture = to_picture(image)
    grid = rows_and_columns(grid_size)
    weights = np.asarray(to_floats(mask, "mask"), dtype=np.float64)
    if weights.shape != (picture.height, picture.width):
        raise ShapeError(
            f"mask has shape {weights.shape}; expected that of the picture, "
            f"{(picture.height, picture.width)}: resize it, with the nearest pixel"
        )
    if weights.min() < 0 or cls_weight < 0:
        raise NotWeightsError(
            f"weights go down to {min(weights.min(), cls_weight):.3g}; expected none below 0. "
            f"Bicubic resizing does that: resize with the nearest pixel"
        )
    tile = Region(0, 0, *picture.size).cell(0, grid)
    wide, high = max(1, round(tile.right)), max(1, round(tile.bottom))
    padded = Image.new("RGB", (picture.width + wide, picture.height), "white")
    ImageDraw.Draw(padded).text((wide / 2, high / 2), "CLS", fill="black", anchor="mm")
    padded.paste(picture, (wide, 0))
    column = np.full((picture.height, wide), weights.min())
    column[:high] = cls_weight
    padded_mask = np.hstack([column, weights])
    cover = np.zeros((*padded_mask.shape, 4))
    cover[high:, :wide] = 1
    return padded, padded_mask / (padded_mask.max() or 1), cover
