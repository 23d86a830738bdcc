"""Whether a patch lies on the digit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["points_at", "share_inside"]


def points_at(
    patches: NDArray[np.integer], boxes: NDArray[np.integer], grid: int, patch_size: int
) -> NDArray[np.bool_]:
    """Tell for each scene whether the centre of a patch lies in the digit's box.

    Args:
        patches: Shape `(scene,)`, counted row by row from 0.
        boxes: Shape `(scene, 4)`: left, top, right, bottom in pixels, the last two exclusive.
        grid: Patches along a side.
        patch_size: Pixels along a side of a patch.
    """
    rows, columns = np.divmod(patches, grid)
    x, y = (columns + 0.5) * patch_size, (rows + 0.5) * patch_size
    left, top, right, bottom = boxes.T
    inside = (left <= x) & (x < right) & (top <= y) & (y < bottom)
    return np.asarray(inside)


def share_inside(boxes: NDArray[np.integer], grid: int, patch_size: int) -> float:
    """Return how often a patch chosen by chance lies on the digit."""
    each = [
        points_at(np.full(len(boxes), patch), boxes, grid, patch_size).mean()
        for patch in range(grid**2)
    ]
    return float(np.mean(each))
