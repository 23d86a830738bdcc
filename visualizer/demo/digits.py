"""The handwritten digits, split in two once and for all. Needs scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from visualizer.errors import MissingDependencyError

__all__ = ["HELD_OUT", "Digits", "load_digits"]

HELD_OUT: Final = 360
"""Digits that no training scene shows, neither whole nor in pieces: a fifth of the 1,797."""
_SPLIT_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Digits:
    """Handwritten digits.

    Attributes:
        images: Shape `(digit, 8, 8)`, 0 to 16.
        labels: Shape `(digit,)`, 0 to 9.
    """

    images: NDArray[np.float64]
    labels: NDArray[np.int64]


def load_digits() -> tuple[Digits, Digits]:
    """Return the digits to train with and the held-out ones, of every class the same share.

    They are the test part of UCI's *Optical Recognition of Handwritten Digits* (Alpaydin & Kaynak,
    1998), as scikit-learn carries it.

    Raises:
        MissingDependencyError: scikit-learn is not there.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise MissingDependencyError(
            "the digits come from scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    loaded = datasets.load_digits()
    images, held_out_images, labels, held_out_labels = model_selection.train_test_split(
        loaded.images,
        loaded.target,
        test_size=HELD_OUT,
        stratify=loaded.target,
        random_state=_SPLIT_SEED,
    )
    return Digits(images, labels), Digits(held_out_images, held_out_labels)
