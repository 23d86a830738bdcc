"""One head, the heads of a layer, one head in several layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.axes
import matplotlib.figure
import numpy as np

from visualizer.errors import OutOfRangeError, ShapeError
from visualizer.plot.drawing import WEIGHT, draw_matrix, label_tokens, largest, show_scale
from visualizer.plot.figures import axes_of, new_axes, new_figure
from visualizer.plot.maps import Head, check_index, heads_of, list_of_layers, one_map

__all__ = ["visualize_head", "visualize_heads", "visualize_layers"]


def visualize_head(
    att_map: Any,
    *,
    item: int | None = None,
    head: Head = None,
    tokens: Sequence[Any] | None = None,
    key_tokens: Sequence[Any] | None = None,
    vmax: float | None = None,
    ax: matplotlib.axes.Axes | None = None,
) -> matplotlib.axes.Axes:
    """Draw one head's attention: queries from the top down, keys from left to right.

    Args:
        att_map: Weights of shape `(query, key)`, `(head, query, key)` or
            `(batch, head, query, key)`; a tensor of any type and device, an array, lists.
        item: Which item of the batch; needed where there are several.
        head: Which head, or "mean" for their average; needed where there are several.
        tokens: Labels of the queries, and of the keys where `key_tokens` is not given. Above 64,
            every nth is shown.
        key_tokens: Labels of the keys, for cross-attention.
        vmax: The weight at the upper end of the colours; the largest one if None.
        ax: Where to draw; axes of a new figure if None.
    Returns:
        The axes.
    Raises:
        ShapeError: Another number of axes, or of tokens; several heads or items and no choice.
        NotWeightsError: Values that are not attention weights.
        OutOfRangeError: A head or an item that does not exist.
    """
    weights = one_map(att_map, item, head)
    side = _side(weights.shape, tokens, 5.0)
    drawn_on = axes_of(ax, side * 1.2, side)
    drawn = draw_matrix(drawn_on, weights, vmax=vmax)
    label_tokens(drawn_on, weights.shape, tokens, _keys(tokens, key_tokens))
    show_scale(drawn, drawn_on)
    return drawn_on


def visualize_heads(
    att_map: Any,
    cols: int = 4,
    *,
    item: int | None = None,
    tokens: Sequence[Any] | None = None,
    key_tokens: Sequence[Any] | None = None,
    shared_scale: bool = False,
) -> matplotlib.figure.Figure:
    """Draw every head of a layer, and their average.

    Args:
        att_map: Weights of shape `(head, query, key)`, `(query, key)` or
            `(batch, head, query, key)`.
        cols: Panels in a row.
        item: Which item of the batch; needed where there are several.
        tokens: Labels of the queries, and of the keys where `key_tokens` is not given.
        key_tokens: Labels of the keys, for cross-attention.
        shared_scale: One scale of colours for all panels; otherwise each has its own.
    Returns:
        The figure.
    Raises:
        ShapeError: Another number of axes, or of tokens; several items and no choice.
        NotWeightsError: Values that are not attention weights.
        OutOfRangeError: An item that does not exist, or `cols` below 1.
    """
    heads = heads_of(att_map, item)
    panels = [(f"Head {index}", weights) for index, weights in enumerate(heads)]
    panels.append(("Head Average", heads.mean(axis=0)))
    vmax = largest(heads) if shared_scale else None
    side = _side(heads.shape[1:], tokens, 2.4)
    figure, axes = panels_for(len(panels), cols, side * 1.25, side)
    for ax, (title, weights) in zip(axes, panels, strict=True):
        drawn = draw_matrix(ax, weights, vmax=vmax)
        ax.set_title(title)
        label_tokens(ax, weights.shape, tokens, _keys(tokens, key_tokens))
        if not shared_scale:
            show_scale(drawn, ax, "")
    if shared_scale:
        show_scale(drawn, axes)
    else:
        figure.suptitle(f"Each panel has its own scale of the {WEIGHT}", fontsize="medium")
    return figure


def visualize_layers(
    maps: Any,
    layers: Sequence[int],
    *,
    cols: int = 6,
    head: Head = "mean",
    item: int | None = None,
    tokens: Sequence[Any] | None = None,
    key_tokens: Sequence[Any] | None = None,
    difference: bool = True,
) -> matplotlib.figure.Figure:
    """Compare layers side by side: one head or the average, on one scale.

    Args:
        maps: An entry for each layer, as `get_local.cache["Attention.forward"]` holds them, or an
            array whose first axis is the layer.
        layers: Which ones.
        cols: Panels in a row.
        head: Which head, or "mean" for their average.
        item: Which item of the batch; needed where there are several.
        tokens: Labels of the queries, and of the keys where `key_tokens` is not given.
        key_tokens: Labels of the keys, for cross-attention.
        difference: Draw the last one less the first one, too, white where they are the same.
    Returns:
        The figure.
    Raises:
        ShapeError: Layers of unequal sizes with `difference`, no layer, or what `visualize_head`
            refuses.
        OutOfRangeError: A layer, head or item that does not exist.
    """
    entries = list_of_layers(maps)
    layers = np.asarray(layers).ravel().tolist()
    if not layers:
        raise ShapeError(f"layers is empty; name some of the {len(entries)}, as layers=[0, 5]")
    layers = [check_index(layer, len(entries), "layer") for layer in layers]
    chosen = [one_map(entries[layer], item, head, name=f"maps[{layer}]") for layer in layers]
    difference = difference and len(chosen) > 1
    shapes = {weights.shape for weights in chosen}
    if difference and len(shapes) > 1:
        raise ShapeError(
            f"layers {list(layers)} have maps of unequal shapes, {sorted(shapes)}: there is no "
            f"difference. Pass difference=False"
        )
    count = len(chosen) + difference
    side = _side(chosen[0].shape, tokens, 3.0)
    figure, axes = panels_for(count, cols, side * 1.15, side)
    vmax = largest(*chosen)
    for ax, layer, weights in zip(axes, layers, chosen, strict=False):
        drawn = draw_matrix(ax, weights, vmax=vmax)
        ax.set_title(f"Layer {layer}")
        label_tokens(ax, weights.shape, tokens, _keys(tokens, key_tokens))
    show_scale(drawn, axes[: len(chosen)])
    if difference:
        change = chosen[-1] - chosen[0]
        far = float(np.abs(change).max()) or 1.0
        drawn = draw_matrix(axes[-1], change, vmax=far, cmap="PuOr")
        drawn.set_clim(-far, far)
        axes[-1].set_title(f"Layer {layers[-1]} less layer {layers[0]}")
        label_tokens(axes[-1], change.shape, tokens, _keys(tokens, key_tokens))
        show_scale(drawn, axes[-1], f"difference of the {WEIGHT}")
    return figure


def panels_for(
    count: int, cols: int, width: float, height: float
) -> tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]:
    """Return a new figure with `count` axes in rows of `cols`, and those axes."""
    if cols < 1:
        raise OutOfRangeError(f"cols is {cols}; expected the number of panels in a row, at least 1")
    columns = min(cols, count)
    rows = -(-count // columns)
    figure = new_figure(width * columns, height * rows + 0.4)
    axes = new_axes(figure, rows, columns)
    for spare in axes[count:]:
        spare.remove()
    return figure, list(axes[:count])


def _keys(tokens: Sequence[Any] | None, key_tokens: Sequence[Any] | None) -> Sequence[Any] | None:
    return tokens if key_tokens is None else key_tokens


def _side(shape: tuple[int, ...], tokens: Sequence[Any] | None, least: float) -> float:
    """Return inches for a matrix: enough for one label beside the other, and for their length."""
    return least if tokens is None else max(least, 1.6 + 0.14 * min(max(shape), 64))
