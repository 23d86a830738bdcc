"""Axes in, axes or a figure out, and nothing of matplotlib's touched; nothing cut off."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import visualizer
from tests.plot.samples import panels, picture, save, weights
from visualizer import plot

matplotlib: Any = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
figures: Any = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")

ROOT = Path(__file__).parent.parent.parent

ON_AXES: dict[str, Callable[..., Any]] = {
    "visualize_head": lambda **options: plot.visualize_head(weights(4, 4), **options),
    "visualize_mosaic": lambda **options: plot.visualize_mosaic(weights(2, 2, 4, 4), **options),
    "visualize_relevance": lambda **options: plot.visualize_relevance(
        weights(2, 2, 5, 5), picture(), 2, gradients=weights(2, 2, 5, 5), **options
    ),
    "visualize_rollout": lambda **options: plot.visualize_rollout(
        weights(2, 2, 5, 5), picture(), 2, **options
    ),
    "plot_entropy": lambda **options: plot.plot_entropy(weights(2, 2, 4, 4), **options),
    "plot_attention_distance": lambda **options: plot.plot_attention_distance(
        weights(2, 2, 5, 5), 2, **options
    ),
}

WIDE, TALL = picture(800, 100), picture(100, 800)
WORDS = [f"longertoken{index}" for index in range(20)]

ODD: dict[str, Callable[[], Any]] = {
    "1 token": lambda: plot.visualize_head(weights(1, 1)),
    "long tokens": lambda: plot.visualize_head(weights(20, 20), tokens=WORDS),
    "64 tokens": lambda: plot.visualize_head(weights(64, 64), tokens=["token"] * 64),
    "1 head": lambda: plot.visualize_heads(weights(1, 5, 5)),
    "40 heads": lambda: plot.visualize_heads(weights(40, 5, 5), 8),
    "heads with tokens": lambda: plot.visualize_heads(weights(3, 20, 20), tokens=WORDS),
    "1 layer": lambda: plot.visualize_layers(weights(1, 1, 9, 9), [0]),
    "2 layers": lambda: plot.visualize_layers(weights(2, 1, 9, 9), [0, 1]),
    "24 layers": lambda: plot.visualize_layers(weights(24, 1, 5, 5), range(24)),
    "mosaic of 1": lambda: plot.visualize_mosaic(weights(1, 1, 1, 1)),
    "mosaic of 1 layer": lambda: plot.visualize_mosaic(weights(1, 12, 9, 9)),
    "mosaic of 24 layers": lambda: plot.visualize_mosaic(weights(24, 16, 5, 5)),
    "mosaic of 40 heads": lambda: plot.visualize_mosaic(weights(2, 40, 5, 5)),
    "grid": lambda: plot.visualize_grid_to_grid(weights(196, 196), 0, picture()),
    "grid of 1": lambda: plot.visualize_grid_to_grid(weights(1, 1), 0, picture(), 1),
    "wide grid": lambda: plot.visualize_grid_to_grid(weights(196, 196), 195, WIDE),
    "tall grid": lambda: plot.visualize_grid_to_grid(weights(196, 196), 195, TALL),
    "with cls": lambda: plot.visualize_grid_to_grid_with_cls(weights(197, 197), 0, picture()),
    "with cls, 1": lambda: plot.visualize_grid_to_grid_with_cls(weights(2, 2), 1, picture(), 1),
    "wide with cls": lambda: plot.visualize_grid_to_grid_with_cls(weights(197, 197), 196, WIDE),
    "tall with cls": lambda: plot.visualize_grid_to_grid_with_cls(weights(197, 197), 196, TALL),
    "cls of 1 head": lambda: plot.visualize_cls(weights(1, 5, 5), picture(), 2),
    "cls of 12 heads": lambda: plot.visualize_cls(weights(12, 5, 5), picture(), 2),
    "wide cls": lambda: plot.visualize_cls(weights(12, 5, 5), WIDE, 2),
    "tall cls": lambda: plot.visualize_cls(weights(12, 5, 5), TALL, 2),
    "rollout": lambda: plot.visualize_rollout(weights(2, 2, 5, 5), picture(), 2),
    "wide rollout": lambda: plot.visualize_rollout(weights(2, 2, 5, 5), WIDE, 2),
    "tall rollout": lambda: plot.visualize_rollout(weights(2, 2, 5, 5), TALL, 2),
    "wide relevance": lambda: plot.visualize_relevance(
        weights(2, 2, 5, 5), WIDE, 2, gradients=weights(2, 2, 5, 5)
    ),
    "1 token of a text": lambda: plot.visualize_tokens(weights(1, 1), picture(), 0),
    "77 tokens of a text": lambda: plot.visualize_tokens(weights(16, 77), picture(), range(77)),
    "tokens over wide": lambda: plot.visualize_tokens(
        weights(8, 20), WIDE, range(20), tokens=WORDS, shared_scale=False
    ),
    "tokens over tall": lambda: plot.visualize_tokens(weights(8, 20), TALL, [0], tokens=WORDS),
    "entropy of 1": lambda: plot.plot_entropy(weights(1, 1, 5, 5)),
    "entropy of 12": lambda: plot.plot_entropy(weights(12, 12, 5, 5)),
    "entropy of 24": lambda: plot.plot_entropy(weights(24, 40, 5, 5)),
    "distance of 1": lambda: plot.plot_attention_distance(weights(1, 1, 5, 5), 2),
    "distance of 24": lambda: plot.plot_attention_distance(weights(24, 40, 5, 5), 2),
    "tables of 1": lambda: plot.plot_head_specialization(weights(1, 1, 5, 5), 2),
    "tables of 12": lambda: plot.plot_head_specialization(weights(12, 12, 5, 5), 2),
    "tables of 24": lambda: plot.plot_head_specialization(weights(24, 40, 5, 5), 2),
    "one picture": lambda: plot.grid_show([(picture(), "title")], 1),
}


def test_the_notebook_s_functions_are_at_the_top() -> None:
    for name in (
        "cls_padding",
        "gray2rgb",
        "grid_show",
        "highlight_grid",
        "visualize_grid_to_grid",
        "visualize_grid_to_grid_with_cls",
        "visualize_head",
        "visualize_heads",
    ):
        assert getattr(visualizer, name) is getattr(plot, name)
        assert name in visualizer.__all__


@pytest.mark.parametrize("name", ON_AXES)
def test_axes_that_are_given_are_drawn_into(name: str) -> None:
    first, second = figures.Figure(layout="constrained").subplots(1, 2)
    assert ON_AXES[name](ax=second) is second
    assert second.has_data()
    assert not first.has_data()
    save(second)


@pytest.mark.parametrize("name", ON_AXES)
def test_axes_of_a_subfigure(name: str) -> None:
    whole = figures.Figure(layout="constrained")
    ax = whole.subfigures(1, 2)[1].subplots()
    assert ON_AXES[name](ax=ax) is ax
    save(whole)


@pytest.mark.parametrize("name", ON_AXES)
def test_axes_come_out_with_a_figure_of_their_own(name: str) -> None:
    drawn, other = ON_AXES[name](), ON_AXES[name]()
    assert isinstance(drawn, matplotlib.axes.Axes)
    assert isinstance(drawn.figure, figures.Figure)
    assert drawn.figure is not other.figure


def test_figures_come_out() -> None:
    for made in (
        plot.visualize_heads(weights(2, 4, 4)),
        plot.visualize_layers(weights(2, 2, 4, 4), [0, 1]),
        plot.visualize_cls(weights(2, 5, 5), picture(), 2),
        plot.visualize_grid_to_grid(weights(4, 4), 0, picture(), 2),
        plot.visualize_grid_to_grid_with_cls(weights(5, 5), 0, picture(), 2),
        plot.plot_head_specialization(weights(2, 2, 5, 5)),
        plot.visualize_tokens(weights(4, 3), picture(), 0),
        plot.grid_show([(picture(), "a")], 1),
    ):
        assert isinstance(made, figures.Figure)
        assert panels(made)


def test_settings_stay_as_they_are() -> None:
    before = dict(matplotlib.rcParams)
    for name in ("wide with cls", "mosaic of 1", "tables of 1", "2 layers", "rollout"):
        save(ODD[name]())
    assert dict(matplotlib.rcParams) == before


DRAW_ALL = """
import sys
import numpy as np
from visualizer import plot
maps = np.full((2, 2, 5, 5), 0.2)
image = np.zeros((20, 20, 3), np.uint8)
plot.visualize_head(maps[0, 0], tokens="abcde").figure.savefig("a.png")
plot.visualize_heads(maps[0]).savefig("a.png")
plot.visualize_layers(maps, [0, 1]).savefig("a.png")
plot.visualize_grid_to_grid(maps[0, 0, 1:, 1:], 0, image, 2).savefig("a.png")
plot.visualize_grid_to_grid_with_cls(maps[0, 0], 0, image, 2).savefig("a.png")
plot.visualize_cls(maps[0], image, 2).savefig("a.png")
plot.visualize_rollout(maps, image, 2).figure.savefig("a.png")
plot.visualize_mosaic(maps).figure.savefig("a.png")
plot.visualize_tokens(maps[0, 0, 1:], image, 2).savefig("a.png")
plot.plot_entropy(maps).figure.savefig("a.png")
plot.plot_attention_distance(maps, 2).figure.savefig("a.png")
plot.plot_head_specialization(maps, 2).savefig("a.png")
plot.grid_show([(image, "a")], 1).savefig("a.png")
plot.highlight_grid(image, [0])
plot.cls_padding(image, np.ones((20, 20)), 0.5, 2)
from matplotlib import rcParams
print(rcParams._get_backend_or_none(), *sorted(sys.modules))
"""


def modules_after(code: str, folder: Path) -> list[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_pyplot_is_not_imported_and_no_backend_chosen(tmp_path: Path) -> None:
    backend, *modules = modules_after(DRAW_ALL, tmp_path)
    assert backend == "None"
    for name in ("matplotlib.pyplot", "torch", "IPython", "transformers"):
        assert name not in modules
    assert (tmp_path / "a.png").exists()


def test_that_the_pyplot_test_can_fail(tmp_path: Path) -> None:
    assert "matplotlib.pyplot" in modules_after("import matplotlib.pyplot" + DRAW_ALL, tmp_path)


@pytest.mark.parametrize("name", ODD)
def test_nothing_is_cut_off(name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = ODD[name]()
    figure = getattr(drawn, "figure", drawn)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    seen = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    over = max(-seen.x0, -seen.y0, seen.x1 - width, seen.y1 - height)
    assert over <= 0.03, f"{over:.2f} inches lie outside of {width:.1f} × {height:.1f}"


@pytest.mark.parametrize("name", ODD)
def test_figures_have_a_size_that_can_be_read(name: str) -> None:
    drawn = ODD[name]()
    width, height = getattr(drawn, "figure", drawn).get_size_inches()
    assert max(width, height) <= 40, f"{width:.1f} × {height:.1f} inches"


@pytest.mark.parametrize("name", ["with cls", "with cls, 1", "wide with cls", "tall with cls"])
def test_the_name_of_the_tile_fits_into_it(name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = ODD[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    left = panels(figure)[0]
    text = left.texts[0].get_window_extent(canvas.get_renderer())
    (tile,) = [patch for patch in left.patches if patch.get_fill()]
    room = tile.get_window_extent(canvas.get_renderer())
    assert text.width <= room.width + 1
    assert text.height <= room.height + 1
