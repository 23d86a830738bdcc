"""What each head does, in four numbers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from visualizer.analysis.arrays import Floats, to_weights
from visualizer.analysis.distance import attention_distance
from visualizer.analysis.entropy import entropy
from visualizer.analysis.grids import Grid
from visualizer.analysis.lazy import is_lazy
from visualizer.analysis.mass import diagonal_mass, mass

__all__ = ["HeadStatistics", "specialization"]


@dataclass(frozen=True, slots=True, eq=False)
class HeadStatistics:
    """Statistics of heads, each averaged over the queries; shape `(...)`, as `(layer, head)`.

    Attributes:
        entropy: 0 (one key) to 1 (all keys alike).
        distance: Mean attention distance, in patches, or in tokens where there is no grid.
        prefix_mass: Attention to the tokens before the patches, or to the first token of a text.
        diagonal_mass: Attention of a token to itself.
    """

    entropy: Floats
    distance: Floats
    prefix_mass: Floats
    diagonal_mass: Floats


def specialization(
    weights: Any, grid: Grid | None = None, *, prefix_tokens: int = 0, causal: bool = False
) -> HeadStatistics:
    """Return what tells heads apart: entropy, distance, and the mass on CLS and on the diagonal.

    Args:
        weights: Self-attention, shape `(..., token, token)`; rows sum to 1. Or an `AttentionMap`,
            or a list of them, which are gone through row by row; there, queries that see no key
            do not count.
        grid: Rows and columns of patches, or one number for both; None for text.
        prefix_tokens: Tokens before the patches; for text 0, where the first token is looked at.
        causal: The tokens see only what is before them.
    Raises:
        ShapeError: Not self-attention, or another number of tokens than the grid has.
        NotWeightsError: Rows that are not weights.
    """
    given = weights if is_lazy(weights) else to_weights(weights)
    prefix = slice(0, prefix_tokens if grid is not None else max(prefix_tokens, 1))
    spread = entropy(given, normalized=True, causal=causal)
    blind = np.isnan(entropy(given)) if is_lazy(given) else np.zeros(spread.shape, bool)
    return HeadStatistics(
        entropy=_mean(spread),
        distance=attention_distance(given, grid, prefix_tokens=prefix_tokens),
        prefix_mass=_mean(np.where(blind, np.nan, mass(given, prefix))),
        diagonal_mass=_mean(np.where(blind, np.nan, diagonal_mass(given))),
    )


def _mean(values: Floats) -> Floats:
    """Return the average along the last axis without NaN; NaN where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=-1))
