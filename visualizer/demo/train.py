"""Train the bundled model: `python -m visualizer.demo.train`. Needs scikit-learn.

The only thing that the model is told is which digit is in a scene, never where. It learns faster
with the easy part first: windows of few patches, then ever larger ones, up to whole scenes. Each
window has the position embeddings of a place in the scene where it could be.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from visualizer.demo.digits import Digits, load_digits
from visualizer.demo.loading import FILES, MEAN, STD
from visualizer.demo.model import VisionTransformer
from visualizer.demo.scenes import DENSITY, GRID, PATCH, Floats, Scenes, compose, cut_cells, draw

__all__ = ["accuracy", "held_out_scenes", "main", "train"]

STAGES: Final = ((5, 1200), (7, 900), (9, 800), (GRID, 1100))
"""Patches along a side of the window, and steps."""
TOKENS: Final = 4000
"""Tokens in a batch, whatever the window."""
LEARNING_RATE: Final = 1e-3
WARMUP: Final = 200
REDRAWN: Final = 100
"""Steps after which the training digits are drawn anew, turned and slanted otherwise."""
SHIPPED: Final = 12
"""Held-out scenes that come with the package."""
COMMAND: Final = "python -m visualizer.demo.train"


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's scenes and where in the whole their window is, in patches from the left top."""

    scenes: Scenes
    corner: tuple[int, int]


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, and write the weights, the model card and the scenes."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Train the bundled model.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    parser.add_argument("--out", type=Path, default=FILES, help="folder for what is made")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    model = train(options.seed)
    minutes = (time.monotonic() - start) / 60
    share = accuracy(model, held_out_scenes(2000, seed=1))
    print(f"{share:.1%} of 2,000 held-out scenes are right; trained in {minutes:.1f} minutes")
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), options.out / "digits_vit.safetensors")
    write_scenes(held_out_scenes(SHIPPED, seed=2), options.out)
    card = model_card(model, options.seed, options.threads, share, minutes)
    (options.out / "MODEL_CARD.md").write_text(card, encoding="utf-8")


def train(seed: int = 0) -> VisionTransformer:
    """Return a trained model, in eval mode. The seed decides everything but rounding."""
    torch.manual_seed(seed)
    model = VisionTransformer()
    optimizer = make_optimizer(model)
    steps = sum(count for _, count in STAGES)
    training, _ = load_digits()
    columns = (
        *Progress.get_default_columns()[:-1],
        TimeRemainingColumn(),
        TextColumn("{task.fields[right]}"),
    )
    with Progress(*columns) as progress:
        shown = progress.add_task("Training", total=steps, right="")
        right = 0.1
        for step, batch in enumerate(batches(training, np.random.default_rng(seed))):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            logits = classify_window(model, batch)
            labels = torch.from_numpy(batch.scenes.labels)
            functional.cross_entropy(logits, labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            right += 0.02 * ((logits.argmax(1) == labels).float().mean().item() - right)
            progress.update(shown, advance=1, right=f"{right:.1%} right")
    return model.eval()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW, with weight decay on the matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))


def learning_rate(step: int, steps: int) -> float:
    """Rise, stay for the first half, and fall along half a cosine."""
    fallen = max(0.0, step / steps - 0.5) * 2
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * fallen))


def batches(digits: Digits, random: np.random.Generator) -> Iterator[Batch]:
    """Yield the scenes of every step, from windows to the whole, from sparse clutter to dense."""
    step = 0
    sparse_steps = STAGES[0][1] / 2
    for window, count in STAGES:
        size = max(16, TOKENS // window**2)
        for _ in range(count):
            if step % REDRAWN == 0:
                drawn = np.stack([draw(image, random) for image in digits.images])
                cells = cut_cells(drawn, 2048, random)
            scenes = compose(
                drawn,
                digits.labels,
                cells,
                size,
                random,
                side=window * PATCH,
                density=DENSITY * min(1.0, 0.25 + step / sparse_steps),
            )
            row, column = random.integers(GRID - window + 1, size=2)
            yield Batch(scenes, (int(row), int(column)))
            step += 1


def classify_window(model: VisionTransformer, batch: Batch) -> Tensor:
    """Return the logits of scenes that are as large as a window: the model's forward, in part."""
    patches = model.patch_embed(to_input(batch.scenes.images))
    rows, columns = patches.shape[-2:]
    row, column = batch.corner
    places = model.pos_embed[:, 1:].unflatten(1, (GRID, GRID))
    places = places[:, row : row + rows, column : column + columns].flatten(1, 2)
    cls = (model.cls_token + model.pos_embed[:, :1]).expand(len(patches), -1, -1)
    return model.classify(torch.cat([cls, patches.flatten(2).transpose(1, 2) + places], dim=1))


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """Return scenes `(scene, height, width)` as the model takes them."""
    return (torch.from_numpy(images).float()[:, None] / 255 - MEAN) / STD


def held_out_scenes(count: int, *, seed: int) -> Scenes:
    """Return scenes of digits, and of pieces of digits, that training has not shown."""
    _, held_out = load_digits()
    random = np.random.default_rng([seed, 1])  # a stream that no training seed starts
    drawn: Floats = np.stack([draw(image) for image in held_out.images])
    return compose(drawn, held_out.labels, cut_cells(drawn, 2048, random), count, random)


@torch.inference_mode()
def accuracy(model: VisionTransformer, scenes: Scenes) -> float:
    """Return the share of scenes whose digit the model names."""
    parts = [model(part).argmax(1) for part in to_input(scenes.images).split(100)]
    return float(np.mean(torch.cat(parts).numpy() == scenes.labels))


def write_scenes(scenes: Scenes, folder: Path) -> None:
    """Write each scene as a PNG, and what is in them as JSON."""
    described = []
    for number, image in enumerate(scenes.images):
        name = f"scene_{number:02}.png"
        Image.fromarray(image).save(folder / name, optimize=True)
        facts = {"file": name, "label": int(scenes.labels[number])}
        described.append({**facts, "box": scenes.boxes[number].tolist()})
    text = ",\n ".join(json.dumps(scene) for scene in described)
    (folder / "scenes.json").write_text(f"[{text}]\n", encoding="utf-8")


def model_card(
    model: VisionTransformer, seed: int, threads: int, share: float, minutes: float
) -> str:
    """Describe the weights in Markdown."""
    training, held_out = load_digits()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    scenes = sum(count * max(16, TOKENS // window**2) for window, count in STAGES)
    return f"""# digits_vit

A vision transformer of {parameters:,} parameters (6 layers, 6 heads, 12×12 patches of 8×8 pixels
and a CLS token) that names the one whole handwritten digit in a scene of pieces of others.

| | |
|---|---|
| Data | Scenes of 96×96 pixels, made as needed from the {len(training.images) + len(held_out.images):,} digits of 8×8 pixels that scikit-learn carries (UCI, *Optical Recognition of Handwritten Digits*, Alpaydin & Kaynak, 1998; CC BY 4.0). A digit is drawn at 2.5 times its size, anywhere; the rest is filled with pieces of 8 to 12 pixels cut from other digits |
| Split | By digit, stratified: {len(training.images):,} to train with, {len(held_out.images)} held out. A held-out scene has both its digit and its pieces from held-out ones. The same writers are in both parts |
| Told in training | The class. Never the place |
| Accuracy | **{share:.1%}** of 2,000 held-out scenes |
| Command | `{COMMAND} --seed {seed} --threads {threads}` |
| Time | {minutes:.0f} minutes on two CPU cores, {scenes:,} scenes |

For demonstrations and tests of attention views. It knows nothing but such scenes. The PNGs beside
this file are held-out scenes; `scenes.json` tells their digits and boxes.
"""


if __name__ == "__main__":
    main()
