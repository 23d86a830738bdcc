"""Which places of a picture look at a token of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.axes
import matplotlib.figure
import numpy as np
from matplotlib.cm import ScalarMappable
from PIL import Image

from visualizer.analysis.arrays import Floats
from visualizer.analysis.grids import Grid
from visualizer.plot.drawing import (
    WEIGHT,
    Mode,
    draw_crop,
    draw_overlay,
    draw_picture,
    largest,
    show_scale,
)
from visualizer.plot.heads import panels_for
from visualizer.plot.maps import Head
from visualizer.plot.pictures import Crop, Region, Transform, find_region, to_picture
from visualizer.plot.places import Places, check_keys, choose, list_of_maps, places_of, step_of

__all__ = ["visualize_tokens", "visualize_tokens_over_steps"]


def visualize_tokens(
    maps: Any,
    image: Any,
    chosen: Sequence[int] | int,
    grid_size: Grid | None = None,
    alpha: float = 0.6,
    *,
    tokens: Sequence[Any] | None = None,
    cols: int = 4,
    item: int | None = None,
    head: Head = "mean",
    queries: slice | None = None,
    keys: slice | None = None,
    shared_scale: bool = True,
    crop: Crop | None = None,
    transform: Transform | None = None,
    mode: Mode = "overlay",
) -> matplotlib.figure.Figure:
    """Draw which places of a picture look at a token, token by token (Tang et al., 2022).

    The weights that the places give to the token, averaged over heads, are brought to the largest
    of the maps' grids (bilinearly) and averaged over the maps: layers, resolutions and steps.

    Args:
        maps: Cross-attention from a picture to a text: a map of shape `(query, key)`,
            `(head, query, key)` or `(batch, head, query, key)`, or a list of them. Or
            `AttentionMap`s, of which columns are computed and never the whole.
        image: The picture that the model made or saw: a PIL image, an array, a tensor or a file.
        chosen: Which tokens, counted from 0 in the text.
        grid_size: Rows and columns of the largest map; others have its proportions. If None, they
            are those of the picture, or else the grid is square.
        alpha: How opaque the map is, 0 to 1.
        tokens: The text, a token a key.
        cols: Panels in a row.
        item: Which item of the batch; needed where there are several. Under classifier-free
            guidance, diffusers puts the prompt last.
        head: Which head, or "mean" for their average.
        queries: Which queries are the picture, where others are the text, as in joint attention.
        keys: Which keys are the text, likewise.
        shared_scale: One scale of colours for all panels; otherwise each has its own.
        crop: Where `image` is more than the model saw: the part that it did see: left, top, right,
            bottom, in pixels.
        transform: Instead of `crop`: what made the model's input of the image.
        mode: "overlay" or "dim", as for `visualize_grid_to_grid`.
    Returns:
        The figure: the picture, and a panel for each chosen token.
    Raises:
        ShapeError: Queries that fit no grid, another number of tokens than keys, maps of unequal
            numbers of keys; several items and no choice.
        NotWeightsError: Values that are not attention weights.
        OutOfRangeError: A token, an item or a head that does not exist, or options outside of
            their range.
        PictureError: `image`, `crop` or `transform` can't be used.
    """
    found = check_keys(list_of_maps(maps), item, head, queries, keys)
    names = choose(chosen, tokens, found[0].shape[1])
    picture = to_picture(image)
    region = find_region(picture, crop, transform)
    places = places_of(found, grid_size, region)
    figure, axes = _panels(1 + len(names), cols, picture)
    draw_picture(axes[0], picture)
    draw_crop(axes[0], region, picture)
    axes[0].set_title("The picture", fontsize="medium")
    masks = [_average(places, key) for key in names]
    drawn = _draw(axes[1:], masks, picture, region, shared_scale, alpha=alpha, mode=mode)
    for ax, name in zip(axes[1:], names.values(), strict=True):
        ax.set_title(name, fontsize="medium", parse_math=False)
    if shared_scale:
        show_scale(drawn, axes)
    _tell(figure, places, shared_scale)
    return figure


def visualize_tokens_over_steps(
    maps: Any,
    image: Any,
    chosen: Sequence[int] | int,
    grid_size: Grid | None = None,
    alpha: float = 0.6,
    *,
    tokens: Sequence[Any] | None = None,
    item: int | None = None,
    head: Head = "mean",
    queries: slice | None = None,
    keys: slice | None = None,
    shared_scale: bool = True,
    crop: Crop | None = None,
    transform: Transform | None = None,
    mode: Mode = "overlay",
) -> matplotlib.figure.Figure:
    """Draw the same step by step of a denoising loop: a token a row, a step a column.

    Args:
        maps: `AttentionMap`s of several steps. Those of every tenth are
            `[m for m in maps if m.step % 10 == 0]`.
        image: As for `visualize_tokens`; so are the other arguments, and what is raised.
        chosen: Which tokens, counted from 0 in the text.
        grid_size: Rows and columns of the largest map.
        alpha: How opaque the map is, 0 to 1.
        tokens: The text, a token a key.
        item: Which item of the batch; needed where there are several.
        head: Which head, or "mean" for their average.
        queries: Which queries are the picture.
        keys: Which keys are the text.
        shared_scale: One scale of colours for all panels; otherwise each has its own.
        crop: The part of the picture that the model saw.
        transform: Instead of `crop`: what made the model's input of the image.
        mode: "overlay" or "dim", as for `visualize_grid_to_grid`.
    Returns:
        The figure, its axes row after row.
    Raises:
        ShapeError: Maps that tell no step, or what `visualize_tokens` refuses.
    """
    entries = list_of_maps(maps)
    at = [step_of(entry, f"maps[{index}]") for index, entry in enumerate(entries)]
    steps = sorted(set(at))
    found = check_keys(entries, item, head, queries, keys)
    names = choose(chosen, tokens, found[0].shape[1])
    picture = to_picture(image)
    region = find_region(picture, crop, transform)
    places = places_of(found, grid_size, region)
    figure, axes = _panels(len(names) * len(steps), len(steps), picture)
    of_step = {
        step: [place for place, other in zip(places, at, strict=True) if other == step]
        for step in steps
    }
    masks = [_average(of_step[step], key) for key in names for step in steps]
    drawn = _draw(axes, masks, picture, region, shared_scale, alpha=alpha, mode=mode)
    for ax, step in zip(axes, steps, strict=False):
        ax.set_title(f"Step {step}", fontsize="medium")
    for ax, name in zip(axes[:: len(steps)], names.values(), strict=True):
        ax.set_ylabel(name, parse_math=False)
    if shared_scale:
        show_scale(drawn, axes)
    _tell(figure, places, shared_scale)
    return figure


def _average(places: list[Places], key: int) -> Floats:
    return np.asarray(np.mean([each.weights(key) for each in places], axis=0))


def _panels(
    count: int, cols: int, picture: Image.Image
) -> tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]:
    return panels_for(count, cols, 2.9, 2.5 * min(picture.height / picture.width, 2.5) + 0.3)


def _draw(
    axes: list[matplotlib.axes.Axes],
    masks: list[Floats],
    picture: Image.Image,
    region: Region,
    shared_scale: bool,
    **options: Any,
) -> ScalarMappable:
    """Draw a map on each of the axes; return one of them for the scale that they share."""
    top = largest(*masks)
    for ax, mask in zip(axes, masks, strict=True):
        draw_picture(ax, picture)
        vmax = top if shared_scale else None
        drawn = draw_overlay(ax, mask, region, vmax=vmax, **options)
        if not shared_scale:
            show_scale(drawn, ax, "")
    return drawn


def _tell(figure: matplotlib.figure.Figure, places: list[Places], shared_scale: bool) -> None:
    """Write over a figure what it is of."""
    grids = sorted({each.grid for each in places})
    sizes = " and ".join(f"{rows}×{columns}" for rows, columns in grids)
    count = "one map" if len(places) == 1 else f"{len(places)} maps"
    title = f"Queries: the picture, {sizes}; keys: the text; {count}"
    if not shared_scale:
        title += f"\nEach panel has its own scale of the {WEIGHT}"
    figure.suptitle(title, fontsize="medium")
