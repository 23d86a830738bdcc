"""What the figures need to know beside the values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Annotations"]


@dataclass(frozen=True, slots=True)
class Annotations:
    """What the figures need to know beside the values.

    Attributes:
        tokens: Labels of the tokens.
        image: The picture that the model was given.
        grid: Rows and columns of patches.
        prefix_tokens: Tokens before the patches (CLS, registers).
    """

    tokens: Sequence[Any] | None = None
    image: Any = None
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0
