"""Attention weights to test with: random ones, causal ones, and what Hypothesis draws."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

__all__ = ["causal_weights", "drawn_weights", "even_weights", "random_weights"]


def random_weights(*shape: int, seed: int = 0, spread: float = 2.0) -> Any:
    """Return softmax of random scores, of float64."""
    scores = np.random.default_rng(seed).normal(scale=spread, size=shape)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def even_weights(*shape: int) -> Any:
    """Return weights where each query attends to every key alike."""
    return np.full(shape, 1 / shape[-1])


def causal_weights(tokens: int) -> Any:
    """Return weights where each query attends alike to what is before it, and to itself."""
    return np.tril(np.ones((tokens, tokens))) / np.arange(1, tokens + 1)[:, None]


@st.composite
def drawn_weights(draw: Any, *, square: bool = False, leading: int = 0) -> Any:
    """Draw weights of small sizes, with zeros and with keys that get the same."""
    sizes = st.integers(1, 5)
    queries = draw(sizes)
    keys = queries if square else draw(sizes)
    shape = (*(draw(st.integers(1, 3)) for _ in range(leading)), queries, keys)
    counts = draw(arrays(np.int64, shape, elements=st.integers(0, 9)))
    counts[..., 0] += counts.sum(axis=-1) == 0
    return counts / counts.sum(axis=-1, keepdims=True)
