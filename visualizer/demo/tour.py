"""What `visualizer demo` does: show pictures to a model, draw its attention, tell what was seen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import matplotlib.axes
import matplotlib.figure
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from visualizer.analysis import rollout
from visualizer.demo.attended import Attended, attend_with_bundled_model
from visualizer.demo.loading import load_scenes
from visualizer.demo.pointing import points_at
from visualizer.demo.pretrained import attend_with_pretrained_model
from visualizer.demo.scenes import GRID, PATCH, Scenes
from visualizer.errors import OutputFolderError
from visualizer.plot import (
    plot_attention_distance,
    plot_entropy,
    plot_head_specialization,
    visualize_cls,
    visualize_grid_to_grid_with_cls,
    visualize_head,
    visualize_heads,
    visualize_layers,
    visualize_mosaic,
    visualize_rollout,
)
from visualizer.plot.drawing import draw_box
from visualizer.plot.figures import new_axes, new_figure
from visualizer.plot.pictures import Region, open_picture

__all__ = ["figures", "run_demo"]

SCENE: Final = 5
LAYER: Final = 1
HEAD: Final = 2
"""What the figures of one scene, one layer and one head show of the bundled model."""

Drawing = Callable[[], matplotlib.figure.Figure]


def run_demo(out: Path, *, image: Path | None = None, model: str | None = None) -> None:
    """Draw a model's attention into a folder, and print what was captured.

    Args:
        out: The folder; made if it is not there.
        image: A picture to show; the bundled scenes if None.
        model: `timm:NAME` or `hf:NAME`; the bundled model if None.
    Raises:
        OutputFolderError: The folder can't be written.
        PictureError: The picture can't be read.
        ModelError: The model can't be had or drawn.
        MissingDependencyError: timm or transformers is not installed.
    """
    console = Console(highlight=False)
    make_folder(out)
    scenes = load_scenes() if image is None and model is None else None
    pictures = [open_picture(image)] if image is not None else scene_pictures()
    if model is None:
        attended = attend_with_bundled_model(pictures)
    else:
        console.print(f"Loading {model}, from the hub if it is not in the cache", markup=False)
        attended = attend_with_pretrained_model(model, pictures[0])
    calls = attended.maps
    console.print(
        f"Captured {attended.source}: {len(calls)} calls, each {calls[0].shape} {calls[0].dtype}",
        soft_wrap=True,
    )
    report(console, attended, scenes)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        drawings = dict(figures(attended, scenes))
        for name, draw in progress.track(drawings.items(), description="Drawing"):
            draw().savefig(out / name, dpi=110)
    console.print(f"Wrote {', '.join(drawings)} into {out.resolve()}", soft_wrap=True)


def report(console: Console, attended: Attended, scenes: Scenes | None) -> None:
    """Print what the model says, and where truth is known, whether it is right and why."""
    if scenes is None:
        console.print(f"The model says: {attended.named[0]}", markup=False)
        return
    inside = points_at(peaks(attended), scenes.boxes, GRID, PATCH)
    table = Table("scene", "digit", "the model says", "peak of the rollout")
    for number, (label, named, hit) in enumerate(
        zip(scenes.labels, attended.named, inside, strict=True)
    ):
        table.add_row(str(number), str(label), named, "on the digit" if hit else "elsewhere")
    console.print(table)
    right = sum(
        named == str(label) for label, named in zip(scenes.labels, attended.named, strict=True)
    )
    console.print(
        f"{right} of {len(inside)} digits are named rightly; in {inside.sum()} of {len(inside)} "
        f"scenes the peak of the rollout is inside of the digit's box",
        soft_wrap=True,
    )


def figures(attended: Attended, scenes: Scenes | None) -> Iterator[tuple[str, Drawing]]:
    """Yield the name of each file, and what draws it."""
    item = SCENE if scenes is not None else 0
    maps, picture, grid = attended.maps, attended.pictures[item], attended.grid
    prefix_tokens, transform = attended.prefix_tokens, attended.transform
    layer = min(LAYER, len(maps) - 1)
    head = min(HEAD, maps[layer].shape[1] - 1)
    patch = (grid[0] // 2) * grid[1] + grid[1] // 2
    if scenes is not None:
        patch = patch_of(scenes.boxes[item])
    seen: dict[str, Any] = {"item": item, "prefix_tokens": prefix_tokens, "transform": transform}
    yield "head.png", lambda: whole(visualize_head(maps[layer], item=item, head=head))
    yield "heads.png", lambda: visualize_heads(maps[layer], cols=4, item=item)
    yield (
        "grids.png",
        lambda: visualize_grid_to_grid_with_cls(
            maps[layer], prefix_tokens + patch, picture, grid, head=head, **seen
        ),
    )
    yield "mosaic.png", lambda: whole(visualize_mosaic(maps, item=item))
    yield "cls.png", lambda: visualize_cls(maps[layer], picture, grid, cols=3, **seen)
    yield "rollout.png", lambda: rollouts(attended, scenes)
    between = sorted({0, len(maps) // 2, len(maps) - 1})
    yield "layers.png", lambda: visualize_layers(maps, between, item=item)
    yield "entropy.png", lambda: whole(plot_entropy(maps))
    yield (
        "distance.png",
        lambda: whole(plot_attention_distance(maps, grid, prefix_tokens=prefix_tokens)),
    )
    yield (
        "specialization.png",
        lambda: plot_head_specialization(maps, grid, prefix_tokens=prefix_tokens),
    )


def rollouts(attended: Attended, scenes: Scenes | None) -> matplotlib.figure.Figure:
    """Draw the rollout over every picture, with the digit's box where it is known."""
    count = len(attended.pictures)
    columns = min(4, count)
    rows = -(-count // columns)
    figure = new_figure(3.3 * columns + 1, 2.9 * rows + 0.3)
    for item, (ax, picture) in enumerate(
        zip(new_axes(figure, rows, columns), attended.pictures, strict=False)
    ):
        visualize_rollout(
            attended.maps,
            picture,
            attended.grid,
            item=item,
            prefix_tokens=attended.prefix_tokens,
            transform=attended.transform,
            ax=ax,
        )
        title = f"Rollout to CLS; “{attended.named[item]}”"
        if scenes is not None:
            draw_box(ax, Region(*(float(edge) for edge in scenes.boxes[item])))
            title += f", and it is {scenes.labels[item]}"
        ax.set_title(title, fontsize="medium", parse_math=False)
    return figure


def peaks(attended: Attended) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return for each picture the patch that most of arrives at CLS."""
    weights = np.stack([layer.mean(axis=1) for layer in attended.maps])
    rows = [rollout(weights[:, item])[0] for item in range(weights.shape[1])]
    return np.array([row[attended.prefix_tokens :].argmax() for row in rows])


def scene_pictures() -> list[Image.Image]:
    """Return the bundled scenes as pictures."""
    return [Image.fromarray(image) for image in load_scenes().images]


def patch_of(box: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
    """Return the patch in the middle of a box."""
    column, row = (box[:2] + box[2:]) // 2 // PATCH
    return int(row * GRID + column)


def make_folder(folder: Path) -> None:
    """Make a folder, and make sure that files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputFolderError(
            f"can't write into {folder}: {error.strerror}. Name another folder with --out"
        ) from error


def whole(ax: matplotlib.axes.Axes) -> matplotlib.figure.Figure:
    """Return the figure that axes are in."""
    assert isinstance(ax.figure, matplotlib.figure.Figure)  # made by us, without subfigures
    return ax.figure
