"""What an export wrote, and what it left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visualizer.attention.sizes import in_words

__all__ = ["Export", "LeftOut"]

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A value that is not in an export.

    Attributes:
        name: Which, as it would be read from the capture.
        why: What it is that can't be written, or what went wrong.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


@dataclass(frozen=True, slots=True)
class Export:
    """What was written. Its `repr` says it in words.

    Attributes:
        path: The file, or the folder of a tree.
        files: The files that were written.
        values: How many values are in them.
        nbytes: Their size.
        left_out: The values, or parts of them, that are not.
    """

    path: Path
    files: tuple[Path, ...]
    values: int
    nbytes: int
    left_out: tuple[LeftOut, ...] = ()

    def __repr__(self) -> str:
        files = "" if self.files == (self.path,) else f" in {_count(len(self.files), 'file')}"
        size = in_words(self.nbytes)
        lines = [f"<{_count(self.values, 'value')}{files}, {size}, written to {self.path}>"]
        lines += [f"  left out: {line}" for line in _grouped(self.left_out)]
        return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _grouped(left_out: Sequence[LeftOut]) -> list[str]:
    """Return a line for each reason."""
    groups: dict[str, list[str]] = {}
    for each in left_out:
        groups.setdefault(each.why, []).append(each.name)
    lines = [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}"
        for why, names in groups.items()
    ]
    hidden = len(lines) - _SHOWN
    more = f"… and for {hidden} more reasons; .left_out has them all"
    return lines if hidden <= 0 else [*lines[:_SHOWN], more]
