"""What several figures are made of: a matrix with its axes, a map over a picture, a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from visualizer.analysis.arrays import Floats
from visualizer.errors import OutOfRangeError, ShapeError
from visualizer.plot.cells import cell_sizes
from visualizer.plot.pictures import Region

__all__ = [
    "Mode",
    "draw_box",
    "draw_crop",
    "draw_matrix",
    "draw_overlay",
    "draw_picture",
    "label_tokens",
    "largest",
    "printable",
    "show_scale",
]

Mode = Literal["overlay", "dim"]

SMOOTH: Final = "antialiased"
"""Nearest, but where there are more values than pixels: then none is skipped."""
WEIGHT: Final = "attention weight"
BOX: Final = "#d55e00"  # vermilion, from Okabe & Ito's palette for every kind of colour vision
_MOST_LABELS: Final = 64
_LONGEST_LABEL: Final = 20


def draw_matrix(
    ax: Axes,
    cells: Floats,
    shape: tuple[int, ...],
    *,
    vmax: float | None = None,
    cmap: Any = "viridis",
) -> AxesImage:
    """Draw a map, queries from the top down and keys from left to right.

    Args:
        ax: Where to draw.
        cells: What `matrix_cells` made of the map.
        shape: Of the map, `(query, key)`.
        vmax: The weight at the upper end of the colours; the largest one if None.
        cmap: The colours.
    """
    queries, keys = shape
    sizes = zip(cells.shape, cell_sizes(shape), strict=True)
    bottom, right = (count * size for count, size in sizes)
    image = ax.imshow(
        cells,
        cmap=cmap,
        vmin=0,
        vmax=_top(cells, vmax),
        aspect="equal" if queries == keys else "auto",
        extent=(-0.5, right - 0.5, bottom - 0.5, -0.5),
        origin="upper",
        interpolation=SMOOTH,
    )
    ax.set_xlim(-0.5, keys - 0.5)
    ax.set_ylim(queries - 0.5, -0.5)
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    return image


def draw_picture(ax: Axes, picture: Image.Image) -> None:
    """Draw a picture, in its own pixels as coordinates, without ticks."""
    width, height = picture.size
    ax.imshow(
        np.asarray(picture), extent=(0, width, height, 0), origin="upper", interpolation=SMOOTH
    )
    ax.set_xticks([])
    ax.set_yticks([])


def draw_overlay(
    ax: Axes,
    weights: Floats,
    region: Region,
    *,
    alpha: float,
    vmax: float | None = None,
    cmap: Any = "inferno",
    mode: Mode = "overlay",
) -> ScalarMappable:
    """Draw a map `(row, column)` over a region of what is drawn; return what a colorbar needs.

    Mode "overlay" lays colours over the picture, "dim" darkens it where there is little attention.
    """
    if not 0 <= alpha <= 1:
        raise OutOfRangeError(f"alpha is {alpha}; expected 0 (no map) to 1 (map only)")
    if mode not in ("overlay", "dim"):
        raise OutOfRangeError(f"mode is {mode!r}; expected 'overlay' or 'dim'")
    limits = ax.get_xlim(), ax.get_ylim()
    extent = (region.left, region.right, region.bottom, region.top)
    norm = Normalize(0, _top(weights, vmax))
    drawn: ScalarMappable
    if mode == "overlay":
        drawn = ax.imshow(
            weights,
            cmap=cmap,
            norm=norm,
            alpha=alpha,
            extent=extent,
            origin="upper",
            interpolation="nearest",
        )
    else:
        shade = np.zeros((*weights.shape, 4))
        shade[..., 3] = 1 - np.clip(norm(weights), 0, 1)
        ax.imshow(shade, extent=extent, origin="upper", interpolation="nearest")
        drawn = ScalarMappable(norm, "gray")
        drawn.set_array(weights)
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])
    return drawn


def draw_box(ax: Axes, region: Region) -> Rectangle:
    """Draw a box around a region, to be seen on light and on dark."""
    box = Rectangle(
        (region.left, region.top),
        region.right - region.left,
        region.bottom - region.top,
        fill=False,
        edgecolor=BOX,
        linewidth=1.8,
        joinstyle="miter",
        path_effects=[
            withStroke(linewidth=4.4, foreground="black"),
            withStroke(linewidth=3.4, foreground="white"),
        ],
        clip_on=False,
        zorder=5,
    )
    ax.add_patch(box)
    return box


def draw_crop(ax: Axes, region: Region, picture: Image.Image) -> None:
    """Draw a line around what the model saw, if it is not the whole picture."""
    if region != Region(0, 0, *picture.size):
        x = [region.left, region.right, region.right, region.left, region.left]
        y = [region.top, region.top, region.bottom, region.bottom, region.top]
        ax.plot(x, y, color="white", linewidth=1.2)
        ax.plot(x, y, color="black", linewidth=1.2, linestyle=(0, (4, 4)))


def show_scale(drawn: ScalarMappable, axes: Axes | Sequence[Axes], label: str = WEIGHT) -> None:
    """Put a colorbar beside axes."""
    first = axes if isinstance(axes, Axes) else axes[0]
    first.figure.colorbar(drawn, ax=axes, label=label)


def label_tokens(
    ax: Axes, shape: tuple[int, ...], queries: Sequence[Any] | None, keys: Sequence[Any] | None
) -> None:
    """Write tokens beside a matrix of shape `(query, key)`; every nth where there are too many.

    Raises:
        ShapeError: There are more of them, or fewer, than queries or keys.
    """
    if queries is not None:
        places, labels = _labels(queries, shape[0], "query")
        ax.set_yticks(places, labels, fontsize=_size(len(labels)), parse_math=False)
    if keys is not None:
        places, labels = _labels(keys, shape[1], "key")
        size = _size(len(labels))
        ax.set_xticks(places, labels, fontsize=size, rotation=90, parse_math=False)


def largest(*maps: Floats) -> float:
    """Return the largest weight of all, for the end of a scale; 1 where all are zero."""
    return max(float(weights.max()) for weights in maps) or 1.0


def printable(token: Any) -> str:
    """Return a token in one line of visible characters, at most 20 of them."""
    text = str(token)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if not shown.strip():
        shown = repr(shown)
    return shown if len(shown) <= _LONGEST_LABEL else shown[: _LONGEST_LABEL - 1] + "…"


def _labels(tokens: Sequence[Any], count: int, axis: str) -> tuple[NDArray[np.intp], list[str]]:
    tokens = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    if len(tokens) != count:
        raise ShapeError(
            f"there are {len(tokens)} tokens for the {axis} axis, and the map has {count}. Are the "
            f"special tokens ([CLS], [SEP], <s>) or the padding in one and not in the other?"
        )
    places = np.arange(0, count, -(-count // _MOST_LABELS))
    return places, [printable(tokens[int(place)]) for place in places]


def _size(labels: int) -> float:
    return float(np.clip(460 / max(labels, 1), 6, 9))


def _top(weights: Floats, vmax: float | None) -> float:
    """Return the end of the scale."""
    if vmax is None:
        return largest(weights)
    if not vmax > 0:
        raise OutOfRangeError(f"vmax is {vmax}; expected the weight at the upper end, above 0")
    return float(vmax)
