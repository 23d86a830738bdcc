"""Errors name the shape that was seen, the one expected, and the likely cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.plot.samples import np, picture, weights
from visualizer.errors import NotWeightsError, OutOfRangeError, ShapeError
from visualizer.plot import (
    highlight_grid,
    plot_attention_distance,
    plot_entropy,
    visualize_cls,
    visualize_grid_to_grid,
    visualize_grid_to_grid_with_cls,
    visualize_head,
    visualize_heads,
    visualize_layers,
    visualize_mosaic,
    visualize_rollout,
)

Draw = Callable[[Any], Any]

OF_ONE_MAP: dict[str, Draw] = {
    "head": visualize_head,
    "heads": visualize_heads,
    "grid": lambda values: visualize_grid_to_grid(values, 0, picture(), 2),
    "grid with cls": lambda values: visualize_grid_to_grid_with_cls(values, 0, picture(), (1, 3)),
    "cls": lambda values: visualize_cls(values, picture(), (1, 3)),
}
OF_LAYERS: dict[str, Draw] = {
    "mosaic": visualize_mosaic,
    "entropy": plot_entropy,
    "distance": lambda values: plot_attention_distance(values, None, prefix_tokens=0),
    "layers": lambda values: visualize_layers(values, [0]),
    "rollout": lambda values: visualize_rollout(values, picture(), 2, prefix_tokens=0),
}


def test_a_map_with_cls_belongs_to_the_other_function() -> None:
    with pytest.raises(ShapeError) as error:
        visualize_grid_to_grid(weights(197, 197), 0, picture())
    assert "197 tokens = 14×14 + 1" in str(error.value)
    assert "visualize_grid_to_grid_with_cls" in str(error.value)
    with pytest.raises(ShapeError) as error:
        visualize_grid_to_grid_with_cls(weights(196, 196), 0, picture())
    assert "196 tokens = 14×14" in str(error.value)
    assert "visualize_grid_to_grid" in str(error.value)


@pytest.mark.parametrize(
    ("draw", "tokens", "said"),
    [
        (visualize_grid_to_grid, 49, ["49 tokens", "14×14 = 196", "7×7"]),
        (visualize_grid_to_grid_with_cls, 50, ["50 tokens", "196 patches", "7×7 + 1"]),
        (visualize_grid_to_grid_with_cls, 201, ["201 tokens", "196 + 5", "prefix_tokens=5"]),
    ],
)
def test_the_guess_of_a_grid(draw: Any, tokens: int, said: list[str]) -> None:
    with pytest.raises(ShapeError) as error:
        draw(weights(tokens, tokens), 0, picture())
    assert all(part in str(error.value) for part in said), error.value


def test_a_grid_is_what_the_function_can_take() -> None:
    with pytest.raises(ShapeError) as error:  # this function has no prefix_tokens
        visualize_grid_to_grid(weights(201, 201), 0, picture())
    assert "prefix_tokens=5" not in str(error.value) or "with_cls" in str(error.value)


@pytest.mark.parametrize("grid", [0, -1, (3, 0), (1, 2, 3), 2.5, None, "14"])
def test_what_is_no_grid(grid: Any) -> None:
    with pytest.raises(ShapeError, match="grid"):
        visualize_grid_to_grid(weights(4, 4), 0, picture(), grid)
    with pytest.raises(ShapeError, match="grid"):
        highlight_grid(picture(), [0], grid)


def test_patches_look_at_each_other() -> None:
    with pytest.raises(ShapeError, match=r"3 queries and 4 keys.*\(4, 4\)"):
        visualize_grid_to_grid(weights(3, 4), 0, picture(), 2)


@pytest.mark.parametrize("index", [-1, 4, 10**9, 1.0, True, None, "0"])
def test_an_index_out_of_range(index: Any) -> None:
    for call in (
        lambda: visualize_grid_to_grid(weights(4, 4), index, picture(), 2),
        lambda: highlight_grid(picture(), [index], 2),
        lambda: visualize_layers(weights(4, 1, 3, 3), [index]),
        lambda: visualize_grid_to_grid_with_cls(weights(4, 4), index, picture(), (1, 3)),
    ):
        with pytest.raises(OutOfRangeError, match=r"index|layer") as error:
            call()
        assert str(index) in str(error.value)
        assert "0 to 3" in str(error.value)


def test_several_heads_need_a_choice() -> None:
    with pytest.raises(ShapeError, match=r"3 heads, shape \(3, 4, 4\).*head=2.*head='mean'"):
        visualize_head(weights(3, 4, 4))
    with pytest.raises(OutOfRangeError, match=r"head 3 .*0 to 2"):
        visualize_head(weights(3, 4, 4), head=3)
    with pytest.raises(OutOfRangeError, match="'avg'.*'mean'"):
        visualize_head(weights(3, 4, 4), head="avg")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OF_ONE_MAP)
def test_a_batch_needs_a_choice(name: str) -> None:
    with pytest.raises(ShapeError, match=r"batch of 2, shape \(2, 1, 4, 4\).*item=0.*item=1"):
        OF_ONE_MAP[name](weights(2, 1, 4, 4))


def test_an_item_that_does_not_exist() -> None:
    with pytest.raises(OutOfRangeError, match=r"item 2 .*0 to 1"):
        visualize_heads(weights(2, 1, 4, 4), item=2)


@pytest.mark.parametrize("name", OF_ONE_MAP)
@pytest.mark.parametrize("shape", [(4,), (), (0, 4), (2, 0, 4, 4), (2, 2, 1, 4, 4)])
def test_wrong_shapes_are_named(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as error:
        OF_ONE_MAP[name](np.ones(shape))
    assert str(shape) in str(error.value)
    assert "(query, key)" in str(error.value)


BAD_ROWS = {
    "negative": (np.array([[0.5, 0.5, 0.2, -0.2]] * 4), "scores before softmax"),
    "too much": (np.full((4, 4), 0.5), "sums to 2, expected at most 1"),
    "NaN": (np.full((4, 4), np.nan), "NaN"),
    "infinity": (np.full((4, 4), np.inf), "infinity"),
}


@pytest.mark.parametrize("name", OF_ONE_MAP)
@pytest.mark.parametrize("rows", BAD_ROWS)
def test_rows_that_are_no_weights(name: str, rows: str) -> None:
    values, said = BAD_ROWS[rows]
    with pytest.raises(NotWeightsError, match=said) as error:
        OF_ONE_MAP[name](values)
    assert "of shape (4, 4)" in str(error.value)


def test_swapped_axes_are_guessed() -> None:
    with pytest.raises(NotWeightsError, match="swapped"):
        visualize_head(weights(4, 4).T)


@pytest.mark.parametrize("name", OF_LAYERS)
@pytest.mark.parametrize("rows", BAD_ROWS)
def test_the_layer_with_bad_rows_is_named(name: str, rows: str) -> None:
    values, said = BAD_ROWS[rows]
    with pytest.raises(NotWeightsError, match=rf"maps\[0\](.|\n)*{said}"):
        OF_LAYERS[name]([values[None]])


@pytest.mark.parametrize("name", OF_LAYERS)
@pytest.mark.parametrize("maps", [[], {}, None, 5, "ab", [None], [1, 2], np.eye(3), [np.ones(3)]])
def test_what_holds_no_layers(name: str, maps: Any) -> None:
    with pytest.raises(ShapeError, match="maps|layer"):
        OF_LAYERS[name](maps)


@pytest.mark.parametrize("name", OF_ONE_MAP)
@pytest.mark.parametrize("value", [None, "abc", 1j * np.eye(4), [[1, 2], [3]], object()])
def test_what_is_no_array(name: str, value: Any) -> None:
    with pytest.raises(ShapeError, match="att_map"):
        OF_ONE_MAP[name](value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: visualize_grid_to_grid(weights(4, 4), 0, picture(), 2, alpha=1.5),
        lambda: visualize_grid_to_grid(weights(4, 4), 0, picture(), 2, alpha=float("nan")),
        lambda: visualize_grid_to_grid(weights(4, 4), 0, picture(), 2, mode="x"),  # type: ignore
        lambda: visualize_heads(weights(4, 4), 0),
        lambda: visualize_mosaic(weights(1, 1, 4, 4), max_pixels=0),
        lambda: visualize_cls(weights(5, 5), picture(), 2, prefix_tokens=0),
        lambda: visualize_grid_to_grid_with_cls(weights(5, 5), 0, picture(), 2, prefix_tokens=0),
        lambda: visualize_rollout(weights(1, 1, 5, 5), picture(), 2, residual=2),
        lambda: visualize_rollout(weights(1, 1, 5, 5), picture(), 2, query=5),
        lambda: plot_attention_distance(weights(1, 1, 5, 5), None, prefix_tokens=6),
        lambda: plot_attention_distance(weights(1, 1, 5, 5), None, prefix_tokens=-1),
    ],
)
def test_options_out_of_range(call: Callable[[], Any]) -> None:
    with pytest.raises((OutOfRangeError, ShapeError)):
        call()
