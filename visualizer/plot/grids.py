"""Where in a picture one patch looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import matplotlib.axes
import matplotlib.figure
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

from visualizer.analysis.choices import check_index
from visualizer.analysis.grids import Grid, check_grid, rows_and_columns
from visualizer.errors import OutOfRangeError, ShapeError
from visualizer.plot.drawing import (
    Mode,
    draw_box,
    draw_crop,
    draw_overlay,
    draw_picture,
    largest,
    show_scale,
)
from visualizer.plot.figures import new_axes, new_figure
from visualizer.plot.maps import Head, one_map
from visualizer.plot.pictures import Crop, Region, Transform, find_region, to_picture

__all__ = ["highlight_grid", "visualize_grid_to_grid", "visualize_grid_to_grid_with_cls"]

_SCALE_WIDTH: Final = 1.2
"""Inches for the colorbar."""


def visualize_grid_to_grid(
    att_map: Any,
    grid_index: int,
    image: Any,
    grid_size: Grid = 14,
    alpha: float = 0.6,
    *,
    item: int | None = None,
    head: Head = None,
    crop: Crop | None = None,
    transform: Transform | None = None,
    mode: Mode = "overlay",
) -> matplotlib.figure.Figure:
    """Draw a picture with one patch marked, and over it where that patch looks.

    Args:
        att_map: Weights of patches only, shape `(patch, patch)`, with head and batch axes before
            if there are some. A part of a map whose CLS was cut off will do. Or an `AttentionMap`,
            of which that patch's row is computed.
        grid_index: The patch that looks; counted row by row from 0.
        image: The picture that the model saw: a PIL image, an array, a tensor or a file.
        grid_size: Rows and columns of patches, or one number for both.
        alpha: How opaque the map is, 0 to 1.
        item: Which item of the batch; needed where there are several.
        head: Which head, or "mean" for their average; needed where there are several.
        crop: Where `image` is more than the model saw: the part that it did see, in the image's
            pixels: left, top, right, bottom.
        transform: Instead of `crop`: what made the model's input of the image (of torchvision,
            timm, transformers, or your own), if it only resizes, crops and normalises.
        mode: "overlay" lays colours over the picture, "dim" darkens it where there is little
            attention.
    Returns:
        The figure, with two axes.
    Raises:
        ShapeError: Another number of tokens than the grid has; several heads or items and no
            choice.
        NotWeightsError: Values that are not attention weights.
        OutOfRangeError: A patch, head or item that does not exist.
        PictureError: `image`, `crop` or `transform` can't be used.
    """
    weights = one_map(att_map, item, head)
    grid = _grid_of(weights.shape, grid_size, 0)
    grid_index = check_index(grid_index, grid[0] * grid[1], "grid_index")
    picture = to_picture(image)
    region = find_region(picture, crop, transform)
    mask = weights.row(grid_index).reshape(grid)

    figure, axes = _two_panels(picture)
    for ax in axes:
        draw_picture(ax, picture)
    drawn = draw_overlay(axes[1], mask, region, alpha=alpha, mode=mode)
    for ax in axes:
        draw_box(ax, region.cell(grid_index, grid))
    draw_crop(axes[0], region, picture)
    axes[0].set_title(f"Query: patch {grid_index}")
    axes[1].set_title("Its keys")
    show_scale(drawn, axes[1])
    return figure


def visualize_grid_to_grid_with_cls(
    att_map: Any,
    grid_index: int,
    image: Any,
    grid_size: Grid = 14,
    alpha: float = 0.6,
    *,
    prefix_tokens: int = 1,
    item: int | None = None,
    head: Head = None,
    crop: Crop | None = None,
    transform: Transform | None = None,
    mode: Mode = "overlay",
) -> matplotlib.figure.Figure:
    """Draw where one token looks, with the CLS token as a tile of its own at the left.

    The tile has the same scale of colours as the patches.

    Args:
        att_map: Weights of shape `(token, token)`, CLS first, then the patches; with head and batch
            axes before if there are some. Or an `AttentionMap`, of which that token's row is
            computed.
        grid_index: The token that looks: 0 is CLS, 1 is the first patch.
        image: The picture that the model saw: a PIL image, an array, a tensor or a file.
        grid_size: Rows and columns of patches, or one number for both.
        alpha: How opaque the map is, 0 to 1.
        prefix_tokens: Tokens before the patches: 1 is CLS, more are registers or a distillation
            token, each with a tile.
        item: Which item of the batch; needed where there are several.
        head: Which head, or "mean" for their average; needed where there are several.
        crop: Where `image` is more than the model saw: the part that it did see, in the image's
            pixels: left, top, right, bottom.
        transform: Instead of `crop`: what made the model's input of the image.
        mode: "overlay" or "dim", as for `visualize_grid_to_grid`.
    Returns:
        The figure, with two axes.
    Raises:
        ShapeError: Another number of tokens than the grid has; several heads or items and no
            choice.
        NotWeightsError: Values that are not attention weights.
        OutOfRangeError: A token, head or item that does not exist.
        PictureError: `image`, `crop` or `transform` can't be used.
    """
    if prefix_tokens < 1:
        raise OutOfRangeError(
            f"prefix_tokens is {prefix_tokens}; expected at least 1, the CLS token. For a map "
            f"without it there is visualize_grid_to_grid"
        )
    weights = one_map(att_map, item, head)
    grid = _grid_of(weights.shape, grid_size, prefix_tokens)
    grid_index = check_index(grid_index, weights.shape[0], "grid_index")
    picture = to_picture(image)
    region = find_region(picture, crop, transform)
    row = weights.row(grid_index)
    tiles = _tiles(prefix_tokens, region, grid)
    places = [*tiles, *(region.cell(index, grid) for index in range(grid[0] * grid[1]))]
    names = ["CLS", *(f"+{number}" for number in range(1, prefix_tokens))]

    figure, axes = _two_panels(picture)
    top = largest(row)
    for ax in axes:
        draw_picture(ax, picture)
        ax.set_xlim(min(tile.left for tile in tiles), picture.width)
        ax.set_ylim(max(picture.height, max(tile.bottom for tile in tiles)), 0)
        ax.set_frame_on(False)
    left, right = axes[0].get_xlim()
    points = 72 * (figure.get_figwidth() - _SCALE_WIDTH) / len(axes) / (right - left)
    for name, tile, weight in zip(names, tiles, row[:prefix_tokens], strict=True):
        _write(axes[0], tile, name, points)
        draw_overlay(axes[1], np.full((1, 1), weight), tile, alpha=alpha, vmax=top, mode=mode)
    mask = row[prefix_tokens:].reshape(grid)
    drawn = draw_overlay(axes[1], mask, region, alpha=alpha, vmax=top, mode=mode)
    for ax in axes:
        draw_box(ax, places[grid_index])
    draw_crop(axes[0], region, picture)
    token = names[grid_index] if grid_index < prefix_tokens else f"token {grid_index}"
    axes[0].set_title(f"Query: {token}")
    axes[1].set_title(f"Its keys; on CLS {row[0]:.2g}")
    show_scale(drawn, axes[1])
    return figure


def highlight_grid(
    image: Any, grid_indexes: Sequence[int] | int, grid_size: Grid = 14
) -> Image.Image:
    """Return a copy of a picture, in RGB, with boxes around patches.

    A box lies within its patch, along its edge.

    Args:
        image: A PIL image, an array, a tensor or a file.
        grid_indexes: The patches, counted row by row from 0.
        grid_size: Rows and columns of patches, or one number for both.
    Raises:
        OutOfRangeError: A patch that does not exist.
        PictureError: `image` is no picture.
    """
    picture = to_picture(image).copy()
    grid = rows_and_columns(grid_size)
    indexes = np.asarray(grid_indexes).ravel().tolist()
    whole = Region(0, 0, *picture.size)
    pen = ImageDraw.Draw(picture)
    for index in indexes:
        cell = whole.cell(check_index(index, grid[0] * grid[1], "grid index"), grid)
        left, top = round(cell.left), round(cell.top)
        right, bottom = max(left, round(cell.right) - 1), max(top, round(cell.bottom) - 1)
        width = max(1, round(min(right - left, bottom - top) / 12))
        if min(right - left, bottom - top) >= 8 * width:  # a light line shows it on red pictures
            inner = (left + width, top + width, right - width, bottom - width)
            pen.rectangle(inner, outline="white", width=max(1, width // 2))
        pen.rectangle((left, top, right, bottom), outline="red", width=width)
    return picture


def _grid_of(shape: tuple[int, ...], grid_size: Grid, prefix_tokens: int) -> tuple[int, int]:
    """Return the grid, having made sure that the map is one of its tokens."""
    queries, keys = shape
    grid = rows_and_columns(grid_size)
    patches = grid[0] * grid[1]
    over = keys - patches
    if prefix_tokens == 0 and over in (1, 2, 5):  # CLS; a distillation token; four registers
        tokens = "its CLS token" if over == 1 else f"its {over} tokens before the patches"
        more = "" if over == 1 else f", prefix_tokens={over}"
        raise ShapeError(
            f"{keys} tokens = {grid[0]}×{grid[1]} + {over}: pass the map with {tokens} to "
            f"visualize_grid_to_grid_with_cls{more}, or cut off with att_map[..., {over}:, {over}:]"
        )
    if prefix_tokens and keys == patches:
        raise ShapeError(
            f"{keys} tokens = {grid[0]}×{grid[1]}: there is no CLS token in the map; pass it to "
            f"visualize_grid_to_grid"
        )
    check_grid(grid, keys, prefix_tokens)
    if queries != keys:
        raise ShapeError(
            f"att_map has {queries} queries and {keys} keys; expected patches that look at each "
            f"other, shape ({keys}, {keys})"
        )
    return grid


def _two_panels(
    picture: Image.Image,
) -> tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]:
    """Return a figure and two axes that suit the shape of a picture."""
    shape = picture.height / picture.width
    width = 4.6 if shape <= 1 else 4.6 / min(shape, 2.5)
    figure = new_figure(2 * width + _SCALE_WIDTH, max(1.6, width * shape) + 0.5)
    return figure, list(new_axes(figure, 1, 2))


def _tiles(count: int, region: Region, grid: tuple[int, int]) -> list[Region]:
    """Return places at the left of a picture, as large as its patches, column after column."""
    cell = region.cell(0, grid)
    width, height = cell.right - cell.left, cell.bottom - cell.top
    columns = -(-count // grid[0])
    left = -(columns + 0.35) * width
    places = []
    for number in range(count):
        column, row = divmod(number, grid[0])
        x, y = left + column * width, row * height
        places.append(Region(x, y, x + width, y + height))
    return places


def _write(ax: matplotlib.axes.Axes, tile: Region, name: str, points: float) -> None:
    """Draw a tile with its name, small enough to fit; a pixel of the picture is `points` wide."""
    size = tile.right - tile.left, tile.bottom - tile.top
    ax.add_patch(Rectangle((tile.left, tile.top), *size, facecolor="white", edgecolor="gray"))
    middle = (tile.left + tile.right) / 2, (tile.top + tile.bottom) / 2
    fitting = min(7, 0.45 * points * size[0], 0.9 * points * size[1])
    ax.text(*middle, name, ha="center", va="center", fontsize=fitting, color="black", clip_on=True)
