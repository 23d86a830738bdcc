"""The pointing game: does attention point at the digit that the bundled model names?

In each held-out scene the patch with the highest value points; it is a hit if the centre of that
patch lies in the digit's box (Zhang et al., 2018, without their tolerance). The other figure is the
share of the values that lies in the box (Wang et al., 2020, the energy-based pointing game).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from visualizer import AttentionMap, capture
from visualizer.analysis import relevance, rollout
from visualizer.demo import VisionTransformer, load_model
from visualizer.demo.pointing import points_at, share_inside
from visualizer.demo.scenes import GRID, PATCH, Scenes
from visualizer.demo.train import held_out_scenes, to_input

Values = NDArray[np.floating[Any]]
"""A value for each patch of each scene, shape `(scene, patch)`, 0 or more."""

_SEED = 3  # neither that of the accuracy nor of the bundled scenes
_BATCH = 50


@dataclass(frozen=True, slots=True)
class Attention:
    """What attention says of each patch, and which digits were named.

    Attributes:
        cls: Attention of CLS in the last layer, heads averaged.
        rollout: What arrives at CLS through all layers.
        relevance: For the digit that the model names.
        other: Relevance for the digit that it finds least likely.
        right: Whether it names the digit, shape `(scene,)`.
    """

    cls: Values
    rollout: Values
    relevance: Values
    other: Values
    right: NDArray[np.bool_]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes (default: 500)")


def run(arguments: argparse.Namespace) -> int:
    scenes = held_out_scenes(arguments.scenes, seed=_SEED)
    torch.manual_seed(0)
    trained, untrained = attend(load_model(), scenes), attend(VisionTransformer().eval(), scenes)
    chance = share_inside(scenes.boxes, GRID, PATCH)
    rows = [
        ("rollout", *_figures(trained.rollout, scenes)),
        ("relevance, the digit named", *_figures(trained.relevance, scenes)),
        ("relevance, the least likely digit", *_figures(trained.other, scenes)),
        ("CLS attention, last layer", *_figures(trained.cls, scenes)),
        ("control: chance", chance, chance),
        ("control: brightest patch", *_figures(brightness(scenes), scenes)),
        ("control: untrained, rollout", *_figures(untrained.rollout, scenes)),
        ("control: untrained, relevance", *_figures(untrained.relevance, scenes)),
        ("control: untrained, CLS attention", *_figures(untrained.cls, scenes)),
    ]
    title = f"Pointing game, {arguments.scenes} scenes"
    table = Table("", "points at the digit", "lies on the digit", title=title)
    for name, share, mass in rows:
        table.add_row(name, f"{share:.1%}", f"{mass:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"The model names {trained.right.mean():.1%} of the digits, "
        f"untrained {untrained.right.mean():.1%}."
    )
    return 0


def attend(model: VisionTransformer, scenes: Scenes) -> Attention:
    """Return what a model's attention says of the patches of each scene."""
    parts = list(_attend(model, scenes))
    names = [field.name for field in fields(Attention)]
    return Attention(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )


def _attend(model: VisionTransformer, scenes: Scenes) -> Iterator[Attention]:
    images, labels = to_input(scenes.images), torch.from_numpy(scenes.labels)
    for part, right in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
        with capture(model, gradients=True) as captured:
            logits = model(part)
        maps, named = list(captured.attention), logits.argmax(1)
        items = range(len(part))
        yield Attention(
            cls=maps[-1].row(0).mean(axis=1)[:, 1:],
            rollout=np.stack([rollout(maps, query=0, item=item)[1:] for item in items]),
            relevance=_relevance(maps, logits, named),
            other=_relevance(maps, logits, logits.argmin(1)),
            right=(named == right).numpy(),
        )


def _relevance(maps: list[AttentionMap], logits: Tensor, digits: Tensor) -> Values:
    """Return the relevance of each patch for a digit of each item."""
    logits.gather(1, digits[:, None]).sum().backward(retain_graph=True)
    rows = [relevance(maps, query=0, item=item) for item in range(len(digits))]
    return np.stack(rows)[:, 1:]


def _figures(values: Values, scenes: Scenes) -> tuple[float, float]:
    return hits(values, scenes), mass(values, scenes)


def hits(values: Values, scenes: Scenes) -> float:
    """Return the share of scenes whose highest patch lies on the digit."""
    return float(points_at(values.argmax(axis=1), scenes.boxes, GRID, PATCH).mean())


def mass(values: Values, scenes: Scenes) -> float:
    """Return the share of the values that lies on the digit, averaged over the scenes."""
    everywhere = [
        points_at(np.full(len(values), patch), scenes.boxes, GRID, PATCH)
        for patch in range(GRID**2)
    ]
    inside = np.where(np.stack(everywhere, axis=1), values, 0).sum(axis=1)
    return float((inside / values.sum(axis=1)).mean())


def brightness(scenes: Scenes) -> Values:
    """Return the mean brightness of each patch."""
    patches = scenes.images.reshape(-1, GRID, PATCH, GRID, PATCH)
    return patches.mean(axis=(2, 4)).reshape(len(patches), -1)
