"""Module paths by pattern: `blocks.*.mlp`, `blocks.{layer}.attn`, `**.attn`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from visualizer.errors import UnknownModuleError

__all__ = ["Match", "find_modules"]

_PIECES = re.compile(r"\{layer\}|\*|\?|\[[^]]*\]|[^*?{\[]+|.")


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
    try:
        fits = re.compile(_regex(pattern))
    except re.error as error:
        raise UnknownModuleError(
            f"the pattern {pattern!r} can't be understood: {error}. It may hold *, **, ?, "
            f"{{layer}} and characters to choose from, such as [0-3]"
        ) from error
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
    """Translate a pattern, part by part; `**` stands for any number of parts, none included."""
    regex, seen_layer = "", False
    parts = pattern.split(".")
    for place, part in enumerate(parts):
        is_last = place == len(parts) - 1
        if part == "**":
            regex += r"(?:[^.]+(?:\.[^.]+)*)?" if is_last else r"(?:[^.]+\.)*"
            continue
        if part == "*":
            regex += "[^.]+"
            part = ""
        for piece in _PIECES.findall(part):
            regex += _piece(piece, seen_layer)
            seen_layer = seen_layer or piece == "{layer}"
        regex += "" if is_last else r"\."
    return regex


def _piece(piece: str, seen_layer: bool) -> str:
    if piece == "{layer}":
        return "(?P=layer)" if seen_layer else r"(?P<layer>\d+)"
    if piece == "*":
        return "[^.]*"
    if piece == "?":
        return "[^.]"
    if piece.startswith("[") and len(piece) > 2:
        return piece.replace("[!", "[^", 1)
    return re.escape(piece)


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
