"""Grids that don't fit are refused, and the message guesses what would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")

from tests.analysis.weights import even_weights  # noqa: E402
from visualizer.analysis import attention_distance, specialization  # noqa: E402
from visualizer.errors import ShapeError  # noqa: E402


def message(tokens: int, grid: Any, prefix: int) -> str:
    with pytest.raises(ShapeError) as caught:
        attention_distance(even_weights(tokens, tokens), grid, prefix_tokens=prefix)
    return str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "grid", "prefix", "guess"),
    [
        (197, 14, 0, "197 = 196 + 1: with the CLS token before the patches, prefix_tokens=1"),
        (196, 14, 1, "196 = 196 + 0: with no token before the patches, prefix_tokens=0"),
        (201, (14, 14), 1, "201 = 196 + 5: with CLS and 4 more before the patches, prefix"),
        (198, 14, 0, "198 = 196 + 2: with CLS and 1 more before the patches, prefix_tokens=2"),
        (199, 14, 0, "199 = 196 + 3: with CLS and 2 more before the patches, prefix_tokens=3"),
        (212, 14, 0, "212 = 196 + 16: with CLS and 15 more before the patches, prefix_tokens=16"),
        (213, 14, 0, "Pass the grid as (rows, columns)"),
        (197, 24, 1, "197 = 14×14 + 1: is the grid 14×14?"),
        (197, 24, 0, "197 = 14×14 + 1: is the grid 14×14?"),
        (196, (28, 14), 0, "196 = 14×14 + 0: is the grid 14×14?"),
        (198, 16, 0, "198 = 14×14 + 2: is the grid 14×14?"),
        (201, 16, 0, "201 = 14×14 + 5: is the grid 14×14?"),
        (60, 14, 11, "60 = 7×7 + 11: is the grid 7×7?"),
        # A usual prefix comes before squares, and squares come before any other prefix.
        (17, (3, 5), 0, "17 = 15 + 2: with CLS and 1 more before the patches, prefix_tokens=2"),
        (25, (4, 6), 0, "25 = 24 + 1: with the CLS token before the patches, prefix_tokens=1"),
        (25, (4, 5), 0, "25 = 20 + 5: with CLS and 4 more before the patches, prefix_tokens=5"),
        (16, (2, 8), 1, "16 = 16 + 0: with no token before the patches, prefix_tokens=0"),
        (25, (3, 4), 0, "25 = 5×5 + 0: is the grid 5×5?"),
        (26, (4, 5), 0, "26 = 5×5 + 1: is the grid 5×5?"),
        (28, (4, 5), 3, "28 = 5×5 + 3: is the grid 5×5?"),
        (28, (4, 5), 0, "28 = 20 + 8: with CLS and 7 more before the patches, prefix_tokens=8"),
        (8, 100, 0, "Pass the grid as (rows, columns)"),
        (1, 4, 0, "Pass the grid as (rows, columns)"),
    ],
)
def test_the_message_guesses_why(tokens: int, grid: Any, prefix: int, guess: str) -> None:
    text = message(tokens, grid, prefix)
    assert f". {guess}" in text
    assert ("prefix_tokens=" in text) + ("is the grid" in text) + ("Pass the" in text) == 1


@pytest.mark.parametrize(
    ("tokens", "grid", "prefix"),
    [(197, 14, 0), (196, 14, 1), (201, 14, 1), (198, 14, 0), (212, 14, 0)],
)
def test_following_the_guess_works(tokens: int, grid: int, prefix: int) -> None:
    advice = message(tokens, grid, prefix)
    advised = int(advice.rpartition("prefix_tokens=")[2].split()[0])
    got = attention_distance(even_weights(tokens, tokens), grid, prefix_tokens=advised)
    assert got == pytest.approx(attention_distance(even_weights(196, 196), 14))


def test_the_message_has_the_numbers() -> None:
    text = message(197, (10, 20), 1)
    assert "197 tokens don't fit a grid of 10×20 = 200 patches and 1 before them" in text
    assert "before them" not in message(197, (10, 20), 0)


@pytest.mark.parametrize(
    "grid", [0, -1, (2,), (2, 1, 2), "22", 2.0, (2, 2.0), (-2, -2), (0, 4), (4, 0), (), {2: 2}]
)
@pytest.mark.parametrize("function", [attention_distance, specialization])
def test_what_is_no_grid_is_refused(function: Callable[..., Any], grid: Any) -> None:
    with pytest.raises(ShapeError, match="a number of patches or") as caught:
        function(even_weights(4, 4), grid)
    assert f"got {grid!r}" in str(caught.value)
