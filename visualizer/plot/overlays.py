"""What CLS sees, head by head."""

from __future__ import annotations

from typing import Any

import matplotlib.figure
import numpy as np

from visualizer.analysis.arrays import Floats
from visualizer.analysis.grids import Grid, check_grid
from visualizer.errors import OutOfRangeError
from visualizer.plot.drawing import Mode, draw_overlay, draw_picture, show_scale
from visualizer.plot.heads import panels_for
from visualizer.plot.maps import heads_of
from visualizer.plot.pictures import Crop, Transform, find_region, to_picture

__all__ = ["mass_on_prefix", "visualize_cls"]


def visualize_cls(
    att_map: Any,
    image: Any,
    grid_size: Grid = 14,
    alpha: float = 0.7,
    *,
    cols: int = 4,
    prefix_tokens: int = 1,
    keep_mass: float | None = None,
    item: int | None = None,
    crop: Crop | None = None,
    transform: Transform | None = None,
    mode: Mode = "overlay",
) -> matplotlib.figure.Figure:
    """Draw the attention of CLS to the patches, head by head (Caron et al., 2021, fig. 1 and 3).

    The title of each panel tells the share that stays on CLS and the other prefix tokens, which
    have no place in the picture.

    Args:
        att_map: One layer's weights, shape `(head, token, token)` or `(batch, head, token, token)`,
            CLS first. Or an `AttentionMap`, of which the rows of CLS are computed.
        image: The picture that the model saw: a PIL image, an array, a tensor or a file.
        grid_size: Rows and columns of patches, or one number for both.
        alpha: How opaque the map is, 0 to 1.
        cols: Panels in a row.
        prefix_tokens: Tokens before the patches: 1 is CLS, more are registers or a distillation
            token.
        keep_mass: Show only the patches with the largest weights, as many as make up this share
            of the attention to patches (0.6 in the paper).
        item: Which item of the batch; needed where there are several.
        crop: Where `image` is more than the model saw: the part that it did see: left, top, right,
            bottom, in pixels.
        transform: Instead of `crop`: what made the model's input of the image.
        mode: "overlay" or "dim", as for `visualize_grid_to_grid`.
    Returns:
        The figure, with an axes for each head.
    Raises:
        ShapeError: Another number of tokens than the grid has; several items and no choice.
        NotWeightsError: Values that are not attention weights.
        OutOfRangeError: An item that does not exist, or options outside of their range.
        PictureError: `image`, `crop` or `transform` can't be used.
    """
    if prefix_tokens < 1:
        raise OutOfRangeError(
            f"prefix_tokens is {prefix_tokens}; expected at least 1, the CLS token"
        )
    heads = heads_of(att_map, item)
    grid = check_grid(grid_size, heads.shape[-1], prefix_tokens)
    picture = to_picture(image)
    region = find_region(picture, crop, transform)
    rows = heads.row(0)
    figure, axes = panels_for(
        len(rows), cols, 2.9, 2.5 * min(picture.height / picture.width, 2.5) + 0.3
    )
    for index, (ax, row) in enumerate(zip(axes, rows, strict=True)):
        draw_picture(ax, picture)
        mask = _strongest(row[prefix_tokens:], keep_mass).reshape(grid)
        drawn = draw_overlay(ax, mask, region, alpha=alpha, cmap="viridis", mode=mode)
        ax.set_title(f"Head {index}: {mass_on_prefix(row, prefix_tokens)}", fontsize="medium")
        show_scale(drawn, ax, "")
    figure.suptitle("Query: CLS. Keys: patches; colours are attention weights", fontsize="medium")
    return figure


def mass_on_prefix(row: Floats, prefix_tokens: int) -> str:
    """Return the share of a row that is on the prefix tokens, in words."""
    name = "CLS" if prefix_tokens == 1 else f"CLS and {prefix_tokens - 1} more"
    return f"{row[:prefix_tokens].sum():.0%} on {name}"


def _strongest(row: Floats, keep_mass: float | None) -> Floats:
    """Return a row with zeros but for its largest weights, whose sum reaches a share of its own."""
    if keep_mass is None:
        return row
    if not 0 < keep_mass <= 1:
        raise OutOfRangeError(f"keep_mass is {keep_mass}; expected a share, above 0 to 1")
    order = np.argsort(row)[::-1]
    reached = np.cumsum(row[order])
    # float32 rounding may leave the last sum a little below the whole
    count = int(np.searchsorted(reached, keep_mass * reached[-1], side="left")) + 1
    kept = np.zeros_like(row)
    kept[order[:count]] = row[order[:count]]
    return kept
