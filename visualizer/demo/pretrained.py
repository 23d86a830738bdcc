"""Vision transformers of timm and of transformers, with their weights from the hub."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from PIL import Image
from torch import nn

from visualizer import get_local
from visualizer.demo.attended import Attended
from visualizer.errors import MissingDependencyError, ModelError
from visualizer.plot.pictures import to_rgb

__all__ = ["attend_with_pretrained_model"]


def attend_with_pretrained_model(name: str, picture: Image.Image) -> Attended:
    """Show a picture to a pretrained model.

    Args:
        name: `timm:NAME` or `hf:NAME`; what stands behind is a name on the hub or, as timm and
            transformers read it, a folder.
        picture: Any picture.
    Raises:
        ModelError: The name is unknown, the weights can't be had, or the model is not one of CLS
            and patches.
        MissingDependencyError: timm or transformers is not installed.
    """
    library, colon, model_name = name.partition(":")
    loaders = {"timm": _attend_with_timm, "hf": _attend_with_transformers}
    if not colon or not model_name or library not in loaders:
        raise ModelError(
            f"unknown model {name!r}; expected timm:NAME or hf:NAME, as timm:vit_small_patch16_224 "
            f"or hf:google/vit-base-patch16-224"
        )
    return loaders[library](model_name, to_rgb(picture))


def _attend_with_timm(name: str, picture: Image.Image) -> Attended:
    timm = _import("timm", "timm")
    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"Did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise ModelError(f"timm has no model {name!r}. {hint}")
    model = _load(f"timm:{name}", lambda: timm.create_model(name, pretrained=True)).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    fused = [module for module in model.modules() if hasattr(module, "fused_attn")]
    for module in fused:
        module.fused_attn = False  # the fused kernel computes no map that could be taken
    targets = sorted({type(module) for module in fused}, key=lambda kind: kind.__qualname__)
    functions: list[Any] = [kind.forward for kind in targets]
    maps, logits = _run(f"timm:{name}", functions, "attn", model, transform(picture)[None])
    grid = tuple(getattr(model.patch_embed, "grid_size", ()))
    prefix_tokens = int(getattr(model, "num_prefix_tokens", 1))
    source = " and ".join(f"attn of {function.__qualname__}" for function in functions)
    labels = getattr(model, "pretrained_cfg", {}).get("label_names")
    named = [_name(logits, dict(enumerate(labels)) if labels else {})]
    return _checked(
        f"timm:{name}",
        Attended([picture], transform, source, maps, (grid[0], grid[-1]), prefix_tokens, named),
    )


def _attend_with_transformers(name: str, picture: Image.Image) -> Attended:
    transformers = _import("transformers", "transformers")
    model, processor = _load(
        f"hf:{name}",
        lambda: (
            transformers.AutoModelForImageClassification.from_pretrained(
                name, attn_implementation="eager"
            ),
            transformers.AutoImageProcessor.from_pretrained(name),
        ),
    )
    home = importlib.import_module(type(model).__module__)
    function = getattr(home, "eager_attention_forward", None)
    if function is None:
        raise ModelError(
            f"hf:{name} is a {type(model).__name__}, whose attention has no local to take"
        )

    def transform(image: Image.Image) -> Any:
        return processor(image, return_tensors="pt")["pixel_values"]

    pixels = transform(picture)
    maps, logits = _run(f"hf:{name}", [function], "attn_weights", model.eval(), pixels)
    patch = getattr(model.config, "patch_size", None) or pixels.shape[-1]
    grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
    prefix_tokens = maps[0].shape[-1] - grid[0] * grid[1] if maps else 1
    named = [_name(logits, model.config.id2label)]
    source = f"attn_weights of {function.__qualname__}"
    return _checked(
        f"hf:{name}", Attended([picture], transform, source, maps, grid, prefix_tokens, named)
    )


@torch.inference_mode()
def _run(
    name: str, functions: list[Any], variable: str, model: nn.Module, pixels: torch.Tensor
) -> tuple[list[Any], torch.Tensor]:
    """Return every layer's map, and the logits."""
    if not functions:
        raise ModelError(f"{name} has no attention that could be taken: no module with fused_attn")
    get_local.clear()
    with ExitStack() as patches:
        for function in functions:
            patches.enter_context(get_local.patch(function, variable))
        output = model(pixels)
    entries = [
        get_local.cache[f"{function.__module__}:{function.__qualname__}"] for function in functions
    ]
    maps = [entry for entries_of_one in entries for entry in entries_of_one]
    return maps, getattr(output, "logits", output)


def _checked(name: str, attended: Attended) -> Attended:
    """Refuse what is no vision transformer of CLS and patches."""
    rows, columns = attended.grid
    expected = rows * columns + attended.prefix_tokens
    shapes = sorted({entry.shape for entry in attended.maps})
    if attended.prefix_tokens < 1 or [shape[2:] for shape in shapes] != [(expected, expected)]:
        raise ModelError(
            f"{name} is no vision transformer with CLS and one grid of patches: its maps have the "
            f"shapes {shapes}, and a grid of {rows}×{columns} was expected"
        )
    return attended


def _load(name: str, load: Callable[[], Any]) -> Any:
    chatter = logging.getLogger("huggingface_hub")  # it tells of every retry
    level = chatter.level
    chatter.setLevel(logging.CRITICAL)
    try:
        return load()
    except Exception as error:  # the libraries raise what they like: OSError, RuntimeError, …
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"can't load {name}: {reason}. If the hub can't be reached from here, load the model "
            f"once where it can, and bring its cache along (HF_HOME), or pass a folder with it"
        ) from error
    finally:
        chatter.setLevel(level)


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is needed for this model, and can't be imported ({error}): "
            f"pip install {extra}"
        ) from error


def _name(logits: torch.Tensor, labels: dict[int, str]) -> str:
    best = int(logits[0].argmax())
    return labels.get(best, f"class {best}")
