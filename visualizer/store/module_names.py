"""What the path of a module says: its layer, the pattern it follows, what kind of module it is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress

from visualizer._block.patterns import find_modules
from visualizer.errors import UnknownModuleError

__all__ = ["CATEGORIES", "category_of", "layer_of", "pattern_of"]

CATEGORIES = ("attention", "mlp", "other")

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")
_NORM = re.compile(r"norm|^ln(_|\d|$)", re.IGNORECASE)
_KINDS = {
    "attention": re.compile(r"attn|attention", re.IGNORECASE),
    "mlp": re.compile(
        r"mlp|ffn|feed_?forward|densereludense|intermediate|^(?:fc|linear|lin|wi|wo)_?\d",
        re.IGNORECASE,
    ),
}


def category_of(path: str) -> str:
    """Return "attention", "mlp" or "other", by a module's name.

    Names of norms tell nothing: `post_attention_layernorm` is "other".

    Example:
        >>> [category_of(f"layers.0.{name}") for name in ("self_attn.o_proj", "mlp", "norm1")]
        ['attention', 'mlp', 'other']
    """
    parts = [part for part in path.split(".") if not _NORM.search(part)]
    for category, fits in _KINDS.items():
        if any(fits.search(part) for part in parts):
            return category
    return "other"


def pattern_of(path: str) -> str:
    """Return a path with `{layer}` for its first number, as `capture(modules=…)` takes it.

    Example:
        >>> pattern_of("model.layers.3.self_attn"), pattern_of("blocks.3"), pattern_of("head")
        ('model.layers.{layer}.self_attn', 'blocks.{layer}', 'head')
    """
    return _NUMBER.sub("{layer}", path, count=1)


def layer_of(path: str, patterns: Iterable[str]) -> tuple[int, str] | None:
    """Return the layer that a module is in, and its path within that; None outside of layers.

    Args:
        path: Of the module.
        patterns: Those of `capture(modules=…)`: what `{layer}` stands for is the layer. Where none
            of them says it, the first number in the path is.

    Example:
        >>> layer_of("encoder.layers.3.mlp.fc1", ()), layer_of("head", ())
        ((3, 'mlp.fc1'), None)
    """
    match = _NUMBER.search(path)
    for pattern in patterns:
        if "{layer}" in pattern:
            with suppress(UnknownModuleError):
                found = find_modules(pattern, [path]).layers[path]
                if found is not None:
                    return found, _behind(path, found)
    return None if match is None else (int(match[0]), _behind(path, int(match[0])))


def _behind(path: str, layer: int) -> str:
    """Return what stands behind the number of the layer, or the part before it."""
    for match in _NUMBER.finditer(path):
        if int(match[0]) == layer:
            return path[match.end() + 1 :] or path[: match.start()].rstrip(".").rpartition(".")[2]
    return path
