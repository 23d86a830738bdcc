"""Module paths by pattern: `blocks.*.mlp`, `blocks.{layer}.attn`, `**.attn`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from visualizer.errors import UnknownModuleError

__all__ = ["Match", "find_modules"]

_PARTS = re.compile(r"\{layer\}|\*\*|\*|\?|\[[^]]*\]|[^*?{\[]+|.")


class Match:
    """A pattern and the modules that it fits.

    Attributes:
        pattern: As it was given.
        layers: `{path: layer}`; the layer is None where the pattern does not name it.
    """

    def __init__(self, pattern: str, layers: dict[str, int | None]) -> None:
        self.pattern = pattern
        self.layers = layers


def find_modules(pattern: str, paths: Iterable[str]) -> Match:
    """Return which modules a pattern fits.

    `*` stands for anything within one part of a path, `**` for any number of parts, `?` for one
    character, `[0-3]` for one of several, and `{layer}` for a number, which becomes the layer.

    Raises:
        UnknownModuleError: It fits none.
    """
    if not isinstance(pattern, str):
        raise UnknownModuleError(
            f"modules holds {pattern!r}; expected paths or patterns, such as 'blocks.*.mlp'"
        )
    known = list(paths)
    fits = re.compile(_regex(pattern))
    found: dict[str, int | None] = {}
    for path in known:
        match = fits.fullmatch(path)
        if match is not None:
            layer = match.groupdict().get("layer")
            found[path] = None if layer is None else int(layer)
    if not found:
        raise UnknownModuleError(_explain(pattern, known))
    return Match(pattern, found)


def _regex(pattern: str) -> str:
    regex, seen_layer = "", False
    for part in _PARTS.findall(pattern):
        if part == "{layer}":
            regex += r"(?P=layer)" if seen_layer else r"(?P<layer>\d+)"
            seen_layer = True
        elif part == "**":
            regex += ".*"
        elif part == "*":
            regex += "[^.]*"
        elif part == "?":
            regex += "[^.]"
        elif part.startswith("[") and len(part) > 1:
            regex += part.replace("[!", "[^", 1)
        else:
            regex += re.escape(part)
    return regex


def _explain(pattern: str, known: list[str]) -> str:
    """Say what is near a pattern that fits nothing."""
    plain = re.sub(r"\{layer\}|\*+", "0", pattern)
    ranked = difflib.get_close_matches(plain, known, n=3, cutoff=0.4)
    tail = pattern.rsplit(".", 1)[-1]
    longer = [path for path in known if tail and path.endswith(tail)][:3]
    near = list(dict.fromkeys([*longer, *ranked]))[:4] or known[1:4]
    hint = f" Near it: {', '.join(map(repr, near))}." if near else ""
    if longer and "**" not in pattern:
        hint += f" '**.{tail}' fits at any depth."
    return (
        f"the pattern {pattern!r} fits none of the model's {len(known)} modules.{hint} "
        f"[name for name, _ in model.named_modules()] lists them all."
    )
