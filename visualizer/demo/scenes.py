"""Scenes: one whole handwritten digit somewhere among pieces of other digits.

The pieces are cut from digits of the same split, drawn in the same size and brightness. Neither
brightness nor the width of a stroke tells where the digit is; only its being whole does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PATCH: Final = 8
"""Pixels along a side of a patch."""
GRID: Final = 12
"""Patches along a side of a scene."""
SIDE: Final = GRID * PATCH
"""Pixels along a side of a scene."""
DIGIT: Final = 24
"""Pixels along a side of a digit's box."""
CELL: Final = 12
"""Pixels along a side of a cell, which holds one piece of clutter."""

ENLARGED: Final = 2.5
"""Pixels of a scene for each of the data's."""
SMALLEST: Final = 8
"""Pixels along the shortest side of a piece."""
DENSITY: Final = 0.85
"""Share of the cells that hold a piece."""
LEAST_INK: Final = 0.2
"""Mean brightness, 0 to 1, below which a piece is too empty and another is cut."""
MARGIN: Final = 3
"""Empty pixels of the data's around a digit, so that it can be turned and moved."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scenes:
    """Pictures with one whole digit each.

    Attributes:
        images: Shape `(scene, height, width)`, uint8; bright strokes on black.
        labels: Shape `(scene,)`; the digits, 0 to 9.
        boxes: Shape `(scene, 4)`; where they are, in pixels: left, top, right, bottom, the last
            two exclusive.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes: NDArray[np.int64]


def draw(digit: NDArray[np.floating], random: np.random.Generator | None = None) -> Floats:
    """Draw a digit of 8×8 values from 0 to 16 as 24×24 pixels from 0 to 1.

    With `random` it is turned, slanted, scaled and moved a little, as for training.
    """
    matrix, shift = np.eye(2), np.zeros(2)
    if random is not None:
        angle, slant = random.uniform(-0.2, 0.2), random.uniform(-0.2, 0.2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = turn @ np.array([[1, slant], [0, 1]]) @ np.diag(random.uniform(0.9, 1.15, 2))
        shift = random.uniform(-0.4, 0.4, 2)
    framed = np.pad(np.asarray(digit, dtype=np.float32) / 16, MARGIN)
    matrix = matrix / ENLARGED
    offset = np.array(framed.shape) / 2 - matrix @ np.full(2, DIGIT / 2) + shift
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    drawn = Image.fromarray(framed).transform(
        (DIGIT, DIGIT), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(drawn, dtype=np.float32), 0, 1)


def cut_cells(digits: Floats, count: int, random: np.random.Generator) -> Floats:
    """Cut pieces out of drawn digits, each put somewhere in a cell of its own.

    Args:
        digits: Shape `(digit, 24, 24)`, 0 to 1.
        count: How many cells.
        random: Where every choice comes from.
    Returns:
        Shape `(cell, 12, 12)`, 0 to 1.
    """
    cells = np.zeros((count, CELL, CELL), dtype=np.float32)
    for cell in cells:
        height, width = random.integers(SMALLEST, CELL + 1, size=2)
        piece = cut_piece(digits, height, width, random)
        top, left = random.integers(0, (CELL + 1 - height, CELL + 1 - width))
        cell[top : top + height, left : left + width] = piece
    return cells


def cut_piece(digits: Floats, height: int, width: int, random: np.random.Generator) -> Floats:
    """Cut a rectangle with some ink out of any of the digits."""
    while True:
        digit = digits[random.integers(len(digits))]
        top, left = random.integers(0, (DIGIT + 1 - height, DIGIT + 1 - width))
        piece = digit[top : top + height, left : left + width]
        if piece.mean() >= LEAST_INK:
            return piece


def compose(
    digits: Floats,
    labels: NDArray[np.integer],
    cells: Floats,
    count: int,
    random: np.random.Generator,
    *,
    side: int = SIDE,
    density: float = DENSITY,
) -> Scenes:
    """Put a digit somewhere in each scene, and pieces of clutter everywhere else.

    Args:
        digits: Shape `(digit, 24, 24)`, 0 to 1.
        labels: Shape `(digit,)`.
        cells: Shape `(cell, 12, 12)`, as `cut_cells` returns them.
        count: How many scenes.
        random: Where every choice comes from.
        side: Pixels along a side of a scene, at least 24.
        density: Share of the cells that hold a piece.
    """
    across = -(-side // CELL) + 1  # one more than fit, so that the cells can be shifted
    chosen = cells[random.integers(len(cells), size=(count, across, across))]
    chosen = chosen * (random.random((count, across, across, 1, 1)) < density)
    canvases = chosen.transpose(0, 1, 3, 2, 4).reshape(count, across * CELL, across * CELL)
    shifts = random.integers(CELL, size=(count, 2))
    corners = random.integers(side + 1 - DIGIT, size=(count, 2))
    which = random.integers(len(digits), size=count)
    images = np.empty((count, side, side), dtype=np.uint8)
    for image, canvas, (down, right), (left, top), digit in zip(
        images, canvases, shifts, corners, digits[which], strict=True
    ):
        scene = canvas[down : down + side, right : right + side]
        scene[top : top + DIGIT, left : left + DIGIT] = digit
        image[:] = np.round(scene * 255)
    return Scenes(images, labels[which].astype(np.int64), np.hstack([corners, corners + DIGIT]))
