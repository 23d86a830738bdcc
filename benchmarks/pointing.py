"""The pointing game: does attention point at the digit that the bundled model names?

In each held-out scene the patch with the highest value points; it is a hit if the centre of that
patch lies in the digit's box (Zhang et al., 2018, without their tolerance).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from visualizer import get_local
from visualizer.analysis import rollout
from visualizer.demo import VisionTransformer, load_model
from visualizer.demo.pointing import points_at, share_inside
from visualizer.demo.scenes import GRID, PATCH, Scenes
from visualizer.demo.train import held_out_scenes, to_input

Values = NDArray[np.floating[Any]]
"""A value for each patch of each scene, shape `(scene, patch)`."""

_SEED = 3  # neither that of the accuracy nor of the bundled scenes


@dataclass(frozen=True, slots=True)
class Attention:
    """What attention says of each patch, and how many digits were named."""

    cls: Values
    rollout: Values
    accuracy: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes (default: 500)")


def run(arguments: argparse.Namespace) -> int:
    scenes = held_out_scenes(arguments.scenes, seed=_SEED)
    torch.manual_seed(0)
    trained, untrained = attend(load_model(), scenes), attend(VisionTransformer().eval(), scenes)
    rows = [
        ("rollout", hits(trained.rollout, scenes)),
        ("CLS attention, last layer", hits(trained.cls, scenes)),
        ("control: chance", share_inside(scenes.boxes, GRID, PATCH)),
        ("control: brightest patch", hits(brightness(scenes), scenes)),
        ("control: untrained model, rollout", hits(untrained.rollout, scenes)),
        ("control: untrained model, CLS attention", hits(untrained.cls, scenes)),
    ]
    table = Table(
        "points at the digit", "scenes", title=f"Pointing game, {arguments.scenes} scenes"
    )
    for name, share in rows:
        table.add_row(name, f"{share:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"The model names {trained.accuracy:.1%} of the digits, untrained {untrained.accuracy:.1%}."
    )
    return 0


@torch.inference_mode()
def attend(model: VisionTransformer, scenes: Scenes) -> Attention:
    """Return a model's attention to the patches of each scene, heads averaged."""
    parts = list(_attend(model, scenes))
    return Attention(
        np.concatenate([part.cls for part in parts]),
        np.concatenate([part.rollout for part in parts]),
        float(
            np.average([part.accuracy for part in parts], weights=[len(part.cls) for part in parts])
        ),
    )


def _attend(model: VisionTransformer, scenes: Scenes) -> Iterator[Attention]:
    images = to_input(scenes.images)
    for part, labels in zip(
        images.split(50), torch.from_numpy(scenes.labels).split(50), strict=True
    ):
        with get_local.patch("visualizer.demo.model:Attention.forward", "attn"):
            get_local.clear()
            named = model(part).argmax(1)
        weights = np.stack(get_local.cache["Attention.forward"]).mean(axis=2)
        rolled = np.stack([rollout(weights[:, item])[0] for item in range(len(part))])
        right = (named == labels).float().mean().item()
        yield Attention(weights[-1, :, 0, 1:], rolled[:, 1:], right)


def hits(values: Values, scenes: Scenes) -> float:
    """Return the share of scenes whose highest patch lies on the digit."""
    return float(points_at(values.argmax(axis=1), scenes.boxes, GRID, PATCH).mean())


def brightness(scenes: Scenes) -> Values:
    """Return the mean brightness of each patch."""
    patches = scenes.images.reshape(-1, GRID, PATCH, GRID, PATCH)
    return patches.mean(axis=(2, 4)).reshape(len(patches), -1)
