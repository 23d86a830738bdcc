"""In a Jupyter kernel a new figure is shown once, at the end of its cell."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tests.plot.samples", reason="numpy or matplotlib is not installed")
nbclient: Any = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat: Any = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
Image: Any = pytest.importorskip("PIL.Image", reason="pillow is not installed")

ROOT = Path(__file__).parent.parent.parent

BEGIN = """
import sys
import numpy as np
from visualizer import *
from visualizer import plot
from matplotlib.figure import Figure
m = np.full((3, 5, 5), 0.2)
image = np.zeros((20, 20, 3), np.uint8)
"""

CELLS: dict[str, tuple[str, int]] = {
    "axes are the last expression": ("visualize_head(m[0])", 1),
    "a figure is the last expression": ("visualize_heads(m, cols=4)", 1),
    "with a semicolon": ("visualize_heads(m, cols=4);", 1),
    "kept in a variable": ("kept = visualize_head(m[0])", 1),
    "not the last expression": ("visualize_head(m[0])\nx = 1", 1),
    "named, then last": ("figure = visualize_heads(m)\nfigure", 1),
    "axes' figure is last": ("visualize_head(m[0]).figure", 1),
    "two, one of them last": ("visualize_head(m[0])\nvisualize_heads(m)", 2),
    "a loop": ("for head in m:\n    visualize_head(head)", 3),
    "three, in one expression": ("[visualize_head(head) for head in m]; None", 3),
    "displayed by hand": ("display(visualize_head(m[0]))", 1),
    "displayed by hand, then another": ("display(visualize_head(m[0]))\nvisualize_head(m[1]);", 2),
    "nothing drawn": ("1 + 1", 0),
    "one from before is asked for": ("kept", 1),
    "and not again": ("2 + 2", 0),
    "into axes of mine": ("ax = Figure().subplots()\nvisualize_head(m[0], ax=ax);", 0),
    "into axes of an earlier figure": ("visualize_head(m[1], ax=kept);", 0),
    "the cell fails": ("visualize_head(m[0])\n1 / 0", 1),
    "after the failure": ("3", 0),
    "in a function": ("def f():\n    visualize_head(m[0])\nf()", 1),
    "over a picture": ("visualize_grid_to_grid(m[0, 1:, 1:], 1, image, 2)", 1),
    "over a picture, with cls": ("visualize_grid_to_grid_with_cls(m[0], 1, image, 2)", 1),
    "pictures with titles": ("grid_show([(image, 'a')], 1)", 1),
    "a refusal": ("visualize_head(np.ones((3, 3)))", 0),
}

PYPLOT: dict[str, tuple[str, int]] = {
    "pyplot's own figure": ("fig, ax = plt.subplots()\nvisualize_head(m[0], ax=ax);", 1),
    "pyplot's and a new one": ("plt.plot([1, 2])\nvisualize_head(m[0]);", 2),
    "pyplot knows nothing of ours": ("visualize_head(m[0]);\nprint(plt.get_fignums())", 1),
    "plt.show does nothing to it": ("visualize_head(m[0])\nplt.show()", 1),
}

BROKEN: dict[str, tuple[str, int]] = {
    "one cannot be drawn": (
        "visualize_head(m[0]).set_title('$x_{$')\nvisualize_head(m[1])\nx = 1",
        1,
    ),
    "the next cell": ("visualize_head(m[0]);", 1),
    "and the one after": ("visualize_head(m[0])\nx = 1", 1),
}

RUN = [
    ("begin", BEGIN, 0),
    *((name, *cell) for name, cell in CELLS.items()),
    ("is pyplot loaded", "print('matplotlib.pyplot' in sys.modules)", 0),
    ("inline", "%matplotlib inline\nimport matplotlib.pyplot as plt", 0),
    *((f"{name}, inline", *cell) for name, cell in CELLS.items()),
    *((name, *cell) for name, cell in PYPLOT.items()),
    *((name, *cell) for name, cell in BROKEN.items()),
]


@pytest.fixture(scope="module")
def outputs() -> dict[str, list[Any]]:
    """What each cell of one notebook puts out; one kernel runs them all."""
    cells = [nbformat.v4.new_code_cell(code) for _, code, _ in RUN]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(
        notebook, timeout=120, allow_errors=True, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    names = [name for name, _, _ in RUN]
    assert len(set(names)) == len(names)
    return dict(zip(names, (cell.outputs for cell in notebook.cells), strict=True))


def pictures(found: list[Any]) -> list[Any]:
    """The PNGs among outputs, opened."""
    encoded = [
        output["data"]["image/png"] for output in found if "image/png" in output.get("data", {})
    ]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in encoded]


@pytest.mark.parametrize(("name", "count"), [(name, count) for name, _, count in RUN])
def test_figures_are_shown_once(outputs: dict[str, list[Any]], name: str, count: int) -> None:
    assert len(pictures(outputs[name])) == count, outputs[name]


def test_pyplot_is_not_loaded(outputs: dict[str, list[Any]]) -> None:
    assert outputs["is pyplot loaded"][0]["text"].strip() == "False"
    assert "[]" in outputs["pyplot knows nothing of ours"][0]["text"]


def test_it_is_the_whole_figure(outputs: dict[str, list[Any]]) -> None:
    (shown,) = pictures(outputs["axes are the last expression"])
    assert shown.size == (600, 500)
    assert len(shown.convert("RGB").getcolors(100_000)) > 10
    (inline,) = pictures(outputs["axes are the last expression, inline"])
    assert inline.size == shown.size


def test_errors_are_those_of_the_cells(outputs: dict[str, list[Any]]) -> None:
    failed = {
        name: output["ename"]
        for name, found in outputs.items()
        for output in found
        if output["output_type"] == "error" and name not in BROKEN
    }
    expected = {"the cell fails": "ZeroDivisionError", "a refusal": "NotWeightsError"}
    expected |= {f"{name}, inline": error for name, error in expected.items()}
    assert failed == expected
