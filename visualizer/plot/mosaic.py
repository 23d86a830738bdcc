"""Every head of every layer in one picture."""

from __future__ import annotations

from typing import Any

import matplotlib.axes
import numpy as np
from matplotlib.colors import Normalize, PowerNorm

from visualizer.errors import OutOfRangeError
from visualizer.plot.cells import tiles
from visualizer.plot.drawing import SMOOTH, WEIGHT, show_scale
from visualizer.plot.figures import axes_of
from visualizer.plot.maps import layers_of

__all__ = ["visualize_mosaic"]


def visualize_mosaic(
    maps: Any,
    *,
    item: int | None = None,
    max_pixels: int = 64,
    shared_scale: bool = True,
    ax: matplotlib.axes.Axes | None = None,
) -> matplotlib.axes.Axes:
    """Draw all maps of a model, layers from the top down and heads from left to right.

    In each map queries run from the top down and keys from left to right. Large maps are reduced to
    the largest weight of each block, so that a single strong weight stays to be seen.

    Args:
        maps: An entry for each layer, as `get_local.cache["Attention.forward"]` holds them: shapes
            `(head, query, key)` or `(batch, head, query, key)`, the numbers of heads and tokens as
            each layer has them. Or `AttentionMap`s, as `captured.attention`, which are gone through
            some rows at a time.
        item: Which item of the batch; needed where there are several.
        max_pixels: Pixels along a side of a map, at most.
        shared_scale: One scale of colours, by the root of the weight, for all; otherwise each map
            is divided by its largest weight.
        ax: Where to draw; axes of a new figure if None.
    Returns:
        The axes; each map is 1 wide and 1 high in its coordinates.
    Raises:
        ShapeError: Entries that are no maps; several items and no choice.
        NotWeightsError: Values that are not attention weights.
        OutOfRangeError: An item that does not exist, or `max_pixels` below 1.
    """
    if max_pixels < 1:
        raise OutOfRangeError(f"max_pixels is {max_pixels}; expected at least 1")
    layers = layers_of(maps, item)
    columns = max(heads.shape[0] for heads in layers)
    side = min(max_pixels, max(max(heads.shape[1:]) for heads in layers))
    mosaic = np.full((len(layers) * side, columns * side), np.nan, dtype=np.float32)
    for row, heads in enumerate(layers):
        for column, tile in enumerate(tiles(heads, side)):
            place = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
            mosaic[place] = tile if shared_scale else tile / (tile.max() or 1)

    drawn_on = axes_of(ax, columns * 1.05 + 1.6, len(layers) * 1.05 + 0.8)
    norm = PowerNorm(0.5, 0, float(np.nanmax(mosaic)) or 1) if shared_scale else Normalize(0, 1)
    extent = (0, columns, len(layers), 0)
    drawn = drawn_on.imshow(
        np.ma.masked_invalid(mosaic),
        cmap="viridis",
        norm=norm,
        extent=extent,
        origin="upper",
        interpolation=SMOOTH,
    )
    drawn_on.vlines(np.arange(1, columns), 0, len(layers), colors="white", linewidth=1.0)
    drawn_on.hlines(np.arange(1, len(layers)), 0, columns, colors="white", linewidth=1.0)
    drawn_on.set_xticks(np.arange(columns) + 0.5, [str(head) for head in range(columns)])
    drawn_on.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in range(len(layers))])
    drawn_on.tick_params(length=0)
    drawn_on.set_xlabel("head (in each map: key)")
    drawn_on.set_ylabel("layer (in each map: query)")
    show_scale(drawn, drawn_on, WEIGHT if shared_scale else "share of the map's largest weight")
    return drawn_on
