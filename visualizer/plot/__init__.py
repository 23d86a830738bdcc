"""Figures with matplotlib: axes or weights in, Axes or Figure out.

Nothing here shows, closes or configures anything of matplotlib's: a new figure belongs to no
backend, and a notebook shows it at the end of its cell.
"""

from visualizer.plot.grids import (
    highlight_grid,
    visualize_grid_to_grid,
    visualize_grid_to_grid_with_cls,
)
from visualizer.plot.heads import visualize_head, visualize_heads, visualize_layers
from visualizer.plot.mosaic import visualize_mosaic
from visualizer.plot.overlays import visualize_cls
from visualizer.plot.panels import cls_padding, gray2rgb, grid_show
from visualizer.plot.statistics import (
    plot_attention_distance,
    plot_entropy,
    plot_head_specialization,
)
from visualizer.plot.through import visualize_relevance, visualize_rollout
from visualizer.plot.tokens import visualize_tokens, visualize_tokens_over_steps

__all__ = [
    "cls_padding",
    "gray2rgb",
    "grid_show",
    "highlight_grid",
    "plot_attention_distance",
    "plot_entropy",
    "plot_head_specialization",
    "visualize_cls",
    "visualize_grid_to_grid",
    "visualize_grid_to_grid_with_cls",
    "visualize_head",
    "visualize_heads",
    "visualize_layers",
    "visualize_mosaic",
    "visualize_relevance",
    "visualize_rollout",
    "visualize_tokens",
    "visualize_tokens_over_steps",
]
