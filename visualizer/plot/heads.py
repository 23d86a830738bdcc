"""One head, the heads of a layer, one head in several layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib.axes
import matplotlib.figure
import numpy as np

from visualizer.analysis.arrays import Floats
from visualizer.analysis.choices import check_index
from visualizer.analysis.rows import Rows
from visualizer.errors import OutOfRangeError, ShapeError
from visualizer.plot.cells import matrix_cells
from visualizer.plot.drawing import WEIGHT, draw_matrix, label_tokens, largest, show_scale
from visualizer.plot.figures import axes_of, new_axes, new_figure
from visualizer.plot.maps import Head, heads_of, list_of_layers, one_map

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
            `(batch, head, query, key)`; a tensor of any type and device, an array, lists. Or an
            `AttentionMap`, of which that head and item are computed.
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
    cells = matrix_cells(weights)
    side = _side(weights.shape, tokens, 5.0)
    drawn_on = axes_of(ax, side * 1.2, side)
    drawn = draw_matrix(drawn_on, cells, weights.shape, vmax=vmax)
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
            `(batch, head, query, key)`. Or an `AttentionMap`, which is gone through some rows at a
            time.
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
    count, shape = heads.shape[0], heads.shape[1:]
    titles = [*(f"Head {index}" for index in range(count)), "Head Average"]
    _check_columns(cols)
    panels = matrix_cells(_with_average(heads))
    vmax = largest(panels) if shared_scale else None
    side = _side(shape, tokens, 2.4)
    figure, axes = panels_for(len(panels), cols, side * 1.25, side)
    for ax, title, cells in zip(axes, titles, panels, strict=True):
        drawn = draw_matrix(ax, cells, shape, vmax=vmax)
        ax.set_title(title)
        label_tokens(ax, shape, tokens, _keys(tokens, key_tokens))
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
            array whose first axis is the layer. Or `AttentionMap`s, as `captured.attention`.
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
    _check_columns(cols)
    panels = [matrix_cells(weights) for weights in chosen]
    count = len(chosen) + difference
    side = _side(chosen[0].shape, tokens, 3.0)
    figure, axes = panels_for(count, cols, side * 1.15, side)
    vmax = largest(*panels)
    for ax, layer, weights, cells in zip(axes, layers, chosen, panels, strict=False):
        drawn = draw_matrix(ax, cells, weights.shape, vmax=vmax)
        ax.set_title(f"Layer {layer}")
        label_tokens(ax, weights.shape, tokens, _keys(tokens, key_tokens))
    show_scale(drawn, axes[: len(chosen)])
    if difference:
        change = _difference(chosen[-1], chosen[0])
        cells = matrix_cells(change)
        far = float(np.abs(cells).max()) or 1.0
        drawn = draw_matrix(axes[-1], cells, change.shape, vmax=far, cmap="PuOr")
        drawn.set_clim(-far, far)
        axes[-1].set_title(f"Layer {layers[-1]} less layer {layers[0]}")
        label_tokens(axes[-1], change.shape, tokens, _keys(tokens, key_tokens))
        show_scale(drawn, axes[-1], f"difference of the {WEIGHT}")
    return figure


def panels_for(
    count: int, cols: int, width: float, height: float
) -> tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]:
    """Return a new figure with `count` axes in rows of `cols`, and those axes."""
    _check_columns(cols)
    columns = min(cols, count)
    rows = -(-count // columns)
    figure = new_figure(width * columns, height * rows + 0.4)
    axes = new_axes(figure, rows, columns)
    for spare in axes[count:]:
        spare.remove()
    return figure, list(axes[:count])


def _check_columns(cols: int) -> None:
    """Make sure that there is a panel in a row, at least."""
    if cols < 1:
        raise OutOfRangeError(f"cols is {cols}; expected the number of panels in a row, at least 1")


def _with_average(heads: Rows) -> Rows:
    """Return heads and, as the last one, their average."""

    def take(part: slice) -> Floats:
        rows = heads.take(part)
        return np.concatenate([rows, rows.mean(axis=0, keepdims=True)])

    count, *shape = heads.shape
    return replace(heads, shape=(count + 1, *shape), take=take)


def _difference(last: Rows, first: Rows) -> Rows:
    dtype = np.result_type(last.dtype, first.dtype)
    step = min(last.step, first.step)
    return Rows(last.shape, dtype, step, lambda part: last.take(part) - first.take(part))


def _keys(tokens: Sequence[Any] | None, key_tokens: Sequence[Any] | None) -> Sequence[Any] | None:
    return tokens if key_tokens is None else key_tokens


def _side(shape: tuple[int, ...], tokens: Sequence[Any] | None, least: float) -> float:
    """Return inches for a matrix: enough for one label beside the other, and for their length."""
    return least if tokens is None else max(least, 1.6 + 0.14 * min(max(shape), 64))
