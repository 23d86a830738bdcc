"""Statistics of all heads, layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib.axes
import matplotlib.figure
import numpy as np
from matplotlib.ticker import MaxNLocator

from visualizer.analysis.arrays import Floats
from visualizer.analysis.distance import attention_distance
from visualizer.analysis.entropy import entropy
from visualizer.analysis.grids import Grid
from visualizer.analysis.specialization import specialization
from visualizer.plot.drawing import show_scale
from visualizer.plot.figures import axes_of
from visualizer.plot.heads import panels_for
from visualizer.plot.maps import every_item, list_of_layers

__all__ = ["plot_attention_distance", "plot_entropy", "plot_head_specialization"]

_MOST_NUMBERS = 16
"""Heads in a row up to which each cell of a table tells its number."""


def plot_entropy(
    maps: Any, *, causal: bool = False, ax: matplotlib.axes.Axes | None = None
) -> matplotlib.axes.Axes:
    """Draw the entropy of each head, averaged over queries and pictures (Clark et al., 2019).

    It is divided by that of even attention, `log(number of keys)`: 0 is one key, 1 is all alike.

    Args:
        maps: An entry for each layer, as `get_local.cache["Attention.forward"]` holds them: shapes
            `(head, query, key)` or `(batch, head, query, key)`; rows sum to 1. Or
            `AttentionMap`s, as `captured.attention`, which are gone through row by row.
        causal: Tokens see only what is before them: query `i` is divided by `log(i + 1)`.
        ax: Where to draw; axes of a new figure if None.
    Returns:
        The axes.
    Raises:
        ShapeError: Entries that are no maps.
        NotWeightsError: Rows that are not weights.
    """
    table = _table(
        _mean(entropy(batch, normalized=True, causal=causal), (0, 2)) for batch in _batches(maps)
    )
    drawn_on = axes_of(ax, 0.5 * table.shape[1] + 2.2, 0.5 * len(table) + 1)
    _draw_table(drawn_on, table, "entropy / log(keys)", vmax=1)
    drawn_on.set_title("Entropy of attention", fontsize="medium")
    return drawn_on


def plot_attention_distance(
    maps: Any,
    grid_size: Grid | None = 14,
    *,
    patch_size: float | tuple[float, float] | None = None,
    prefix_tokens: int = 1,
    ax: matplotlib.axes.Axes | None = None,
) -> matplotlib.axes.Axes:
    """Draw how far each head looks against its depth (Dosovitskiy et al., 2021, fig. 7).

    A dot is a head, averaged over queries and pictures; the line is the average of a layer.

    Args:
        maps: An entry for each layer, as `get_local.cache["Attention.forward"]` holds them: shapes
            `(head, token, token)` or `(batch, head, token, token)`; rows sum to 1. Or
            `AttentionMap`s, as `captured.attention`, which are gone through row by row.
        grid_size: Rows and columns of patches, or one number for both; None for text, where the
            distance is in tokens.
        patch_size: Height and width of a patch in pixels, or one number for both; the distance is
            then in pixels, otherwise in patches.
        prefix_tokens: Tokens before the patches; they have no distance and are left out.
        ax: Where to draw; axes of a new figure if None.
    Returns:
        The axes.
    Raises:
        ShapeError: Entries that are no maps, or another number of tokens than the grid has.
        NotWeightsError: Rows that are not weights.
    """
    distances = [
        _mean(
            attention_distance(
                batch,
                grid_size,
                patch_size=1 if patch_size is None else patch_size,
                prefix_tokens=prefix_tokens,
            ),
            0,
        )
        for batch in _batches(maps)
    ]
    drawn_on = axes_of(ax, 5.2, 3.6)
    for layer, heads in enumerate(distances):
        dots = drawn_on.scatter(np.full(len(heads), layer), heads, s=26, color="#0072b2", zorder=3)
        if layer == 0:
            dots.set_label("a head")
    average = [float(_mean(heads, 0)) for heads in distances]
    drawn_on.plot(range(len(average)), average, color="#d55e00", label="average of the layer")
    unit = "tokens" if grid_size is None else "patches" if patch_size is None else "pixels"
    drawn_on.set_xlabel("layer")
    drawn_on.set_ylabel(f"mean attention distance ({unit})")
    drawn_on.set_ylim(0, 1.08 * float(np.nanmax(np.concatenate(distances), initial=0)) or 1)
    drawn_on.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    drawn_on.legend(frameon=False)
    return drawn_on


def plot_head_specialization(
    maps: Any,
    grid_size: Grid | None = None,
    *,
    prefix_tokens: int | None = None,
    causal: bool = False,
    cols: int = 2,
) -> matplotlib.figure.Figure:
    """Draw what tells heads apart: four tables of layers and heads.

    Entropy, mean attention distance, the mass on CLS (or the first token), and the mass on the
    diagonal; averages over queries and pictures.

    Args:
        maps: An entry for each layer, as `get_local.cache["Attention.forward"]` holds them: shapes
            `(head, token, token)` or `(batch, head, token, token)`; rows sum to 1. Or
            `AttentionMap`s, as `captured.attention`, which are gone through row by row.
        grid_size: Rows and columns of patches, or one number for both; None for text.
        prefix_tokens: Tokens before the patches; if None, 1 with a grid and 0 without.
        causal: Tokens see only what is before them.
        cols: Tables in a row.
    Returns:
        The figure, with an axes for each table.
    Raises:
        ShapeError: Entries that are no maps, or another number of tokens than the grid has.
        NotWeightsError: Rows that are not weights.
    """
    if prefix_tokens is None:
        prefix_tokens = 0 if grid_size is None else 1
    found = [
        specialization(batch, grid_size, prefix_tokens=prefix_tokens, causal=causal)
        for batch in _batches(maps)
    ]
    first = "CLS" if grid_size is not None and prefix_tokens == 1 else "the prefix tokens"
    if grid_size is None and prefix_tokens <= 1:
        first = "the first token"
    unit = "tokens" if grid_size is None else "patches"
    panels = [
        ("Entropy", "entropy / log(keys)", [each.entropy for each in found]),
        ("Attention distance", unit, [each.distance for each in found]),
        (f"Mass on {first}", "attention weight", [each.prefix_mass for each in found]),
        ("Mass on the diagonal", "attention weight", [each.diagonal_mass for each in found]),
    ]
    width = max(each.entropy.shape[1] for each in found)
    figure, axes = panels_for(4, cols, 0.5 * width + 2.2, 0.42 * len(found) + 1.2)
    for ax, (title, label, values) in zip(axes, panels, strict=True):
        _draw_table(ax, _table(_mean(each, 0) for each in values), label)
        ax.set_title(title, fontsize="medium")
    return figure


def _batches(maps: Any) -> list[Any]:
    entries = list_of_layers(maps)
    return [every_item(entry, name=f"maps[{index}]") for index, entry in enumerate(entries)]


def _mean(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """Return the average without NaN, and NaN where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis))


def _table(layers: Any) -> Floats:
    """Return rows of unequal lengths as one array, filled up with NaN."""
    rows: Sequence[Floats] = list(layers)
    table = np.full((len(rows), max(len(row) for row in rows)), np.nan)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table


def _draw_table(
    ax: matplotlib.axes.Axes, table: Floats, label: str, vmax: float | None = None
) -> None:
    top = vmax if vmax is not None else float(np.nanmax(table, initial=0)) or 1.0
    shown = np.ma.masked_invalid(table)
    drawn = ax.imshow(
        shown,
        cmap="cividis",
        vmin=0,
        vmax=top,
        aspect="auto",
        origin="upper",
        interpolation="nearest",
    )
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if table.shape[1] <= _MOST_NUMBERS:
        decimals = int(np.clip(1 - np.floor(np.log10(top)), 0, 4))
        for (layer, head), value in np.ndenumerate(table):
            if np.isfinite(value):
                color = "black" if value > 0.55 * top else "white"
                ax.text(
                    head,
                    layer,
                    f"{value:.{decimals}f}",
                    ha="center",
                    va="center",
                    color=color,
                    fontsize=7,
                )
    show_scale(drawn, ax, label)
