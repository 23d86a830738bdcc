"""What arrives at a token through all layers: rollout, and relevance for an outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib.axes
import numpy as np

from visualizer.analysis.arrays import Floats
from visualizer.analysis.choices import check_index
from visualizer.analysis.grids import Grid, check_grid
from visualizer.analysis.relevance import relevance
from visualizer.analysis.rollout import rollout_row
from visualizer.errors import ShapeError
from visualizer.plot.drawing import Mode, draw_overlay, draw_picture, show_scale
from visualizer.plot.figures import axes_of
from visualizer.plot.maps import averages_of
from visualizer.plot.overlays import mass_on_prefix
from visualizer.plot.pictures import Crop, Transform, find_region, to_picture

__all__ = ["visualize_relevance", "visualize_rollout"]


def visualize_rollout(
    maps: Any,
    image: Any,
    grid_size: Grid = 14,
    alpha: float = 0.6,
    *,
    query: int | None = None,
    prefix_tokens: int = 1,
    residual: float = 0.5,
    item: int | None = None,
    crop: Crop | None = None,
    transform: Transform | None = None,
    mode: Mode = "overlay",
    ax: matplotlib.axes.Axes | None = None,
) -> matplotlib.axes.Axes:
    """Draw which patches arrive at CLS through all layers (Abnar & Zuidema, 2020).

    Args:
        maps: An entry for each layer, as `get_local.cache["Attention.forward"]` holds them: shapes
            `(head, token, token)` or `(batch, head, token, token)`. Heads are averaged. Or
            `AttentionMap`s, as `captured.attention`, which are gone through some rows at a time.
        image: The picture that the model saw: a PIL image, an array, a tensor or a file.
        grid_size: Rows and columns of patches, or one number for both.
        alpha: How opaque the map is, 0 to 1.
        query: At which token the patches arrive. CLS if None, and without prefix tokens the average
            over all patches, as for models that classify by it.
        prefix_tokens: Tokens before the patches.
        residual: Share of the residual path in each layer, 0 to 1.
        item: Which item of the batch; needed where there are several.
        crop: Where `image` is more than the model saw: the part that it did see: left, top, right,
            bottom, in pixels.
        transform: Instead of `crop`: what made the model's input of the image.
        mode: "overlay" or "dim", as for `visualize_grid_to_grid`.
        ax: Where to draw; axes of a new figure if None.
    Returns:
        The axes.
    Raises:
        ShapeError: Another number of tokens than the grid has, layers of unequal sizes; several
            items and no choice.
        NotWeightsError: Rows that don't sum to 1.
        OutOfRangeError: A query or an item that does not exist, or options outside of their range.
        PictureError: `image`, `crop` or `transform` can't be used.
    """
    layers = averages_of(maps, item)
    shapes = {layer.shape for layer in layers}
    if len(shapes) > 1:
        raise ShapeError(
            f"rollout needs maps of one size in all layers, got {sorted(shapes)}: it "
            f"does not reach through windows or merged patches"
        )
    tokens = _tokens(layers[0].shape)
    grid = check_grid(grid_size, tokens, prefix_tokens)
    query = _query(query, prefix_tokens)
    if query is not None:
        query = check_index(query, tokens, "query")
    counts = np.full(tokens, 1 / tokens) if query is None else np.eye(1, tokens, query)[0]
    row = rollout_row(layers, counts.astype(layers[0].dtype), residual=residual)
    title = f"Rollout to {_name(query, prefix_tokens)}"
    if prefix_tokens:
        title += f": {mass_on_prefix(row, prefix_tokens)}"
    view = _View(image, alpha, crop, transform, mode, ax)
    return _draw(row[prefix_tokens:].reshape(grid), view, title, "share that arrives")


def visualize_relevance(
    maps: Any,
    image: Any,
    grid_size: Grid = 14,
    alpha: float = 0.6,
    *,
    gradients: Any = None,
    query: int | None = None,
    prefix_tokens: int = 1,
    item: int | None = None,
    crop: Crop | None = None,
    transform: Transform | None = None,
    mode: Mode = "overlay",
    ax: matplotlib.axes.Axes | None = None,
) -> matplotlib.axes.Axes:
    """Draw which patches an outcome rests on (Chefer et al., ICCV 2021).

    The outcome is what `backward()` was called on, such as the logit of a class. Drawn is what came
    by attention: the 1 that a token has of itself is left out.

    Args:
        maps: An `AttentionMap` for each layer, as `captured.attention` of `capture(model,
            gradients=True)`. Or weights, shape `(layer, head, token, token)`.
        image: The picture that the model saw: a PIL image, an array, a tensor or a file.
        grid_size: Rows and columns of patches, or one number for both.
        alpha: How opaque the map is, 0 to 1.
        gradients: Those of the weights, where these are arrays.
        query: The token that the model's head reads. CLS if None, and without prefix tokens the
            average over all patches, as for models that classify by it.
        prefix_tokens: Tokens before the patches.
        item: Which item of the batch; needed where there are several.
        crop: Where `image` is more than the model saw: the part that it did see: left, top, right,
            bottom, in pixels.
        transform: Instead of `crop`: what made the model's input of the image.
        mode: "overlay" or "dim", as for `visualize_grid_to_grid`.
        ax: Where to draw; axes of a new figure if None.
    Returns:
        The axes.
    Raises:
        ShapeError: Another number of tokens than the grid has, layers of unequal sizes; several
            items and no choice.
        NoGradientError: A map has no gradient; the message says what to change.
        NotWeightsError: Rows that don't sum to 1.
        OutOfRangeError: A query or an item that does not exist, or options outside of their range.
        PictureError: `image`, `crop` or `transform` can't be used.
    """
    query = _query(query, prefix_tokens)
    row = _without_own(relevance(maps, gradients, query=query, item=item), query)
    if query is not None:
        query %= len(row)
    grid = check_grid(grid_size, len(row), prefix_tokens)
    title = f"Relevance at {_name(query, prefix_tokens)}"
    view = _View(image, alpha, crop, transform, mode, ax)
    return _draw(row[prefix_tokens:].reshape(grid), view, title, "relevance")


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """The picture, and how the map is laid over it."""

    image: Any
    alpha: float
    crop: Crop | None
    transform: Transform | None
    mode: Mode
    ax: matplotlib.axes.Axes | None


def _draw(mask: Floats, view: _View, title: str, scale: str) -> matplotlib.axes.Axes:
    """Draw a value for each patch, shape `(row, column)`, over the picture."""
    picture = to_picture(view.image)
    region = find_region(picture, view.crop, view.transform)
    ax = axes_of(view.ax, 5.2, 4.2 * min(picture.height / picture.width, 2.5) + 0.4)
    draw_picture(ax, picture)
    drawn = draw_overlay(ax, mask, region, alpha=view.alpha, mode=view.mode)
    ax.set_title(title, fontsize="medium")
    show_scale(drawn, ax, scale)
    return ax


def _query(query: int | None, prefix_tokens: int) -> int | None:
    """Return the token that is meant: CLS where none was given, if there is one."""
    return 0 if query is None and prefix_tokens else query


def _name(query: int | None, prefix_tokens: int) -> str:
    if query is None:
        return "the average of all patches"
    return ("CLS" if prefix_tokens else "patch 0") if query == 0 else f"token {query}"


def _without_own(relevances: Floats, query: int | None) -> Floats:
    """Return the row of a token, or the average of all, without what tokens have of themselves."""
    if query is None:
        return np.asarray(
            (relevances - np.eye(len(relevances), dtype=relevances.dtype)).mean(axis=0)
        )
    row = relevances.copy()
    row[query] -= 1
    return row


def _tokens(shape: tuple[int, ...]) -> int:
    """Return how many tokens look at each other."""
    if shape[0] != shape[1]:
        raise ShapeError(
            f"rollout takes self-attention, with as many queries as keys; got {shape}, (query, key)"
        )
    return shape[0]
