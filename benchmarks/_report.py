"""Rows of results: as a plain text table, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Row", "render_table", "save_json"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        name: What was measured.
        value: The figure; None where it could not be taken.
        unit: Its unit: "ns", "ms", "MB" and so on, "x" for a ratio, or "" for a plain number.
        spread: How far the median of the rounds lies above `value`, where that is a minimum,
            or above the minimum, where it is itself the median.
        target: The most that it should be, if there is a target.
        left_out: Why there is no figure.
    """

    name: str
    value: float | None = None
    unit: str = "ns"
    spread: float | None = None
    target: float | None = None
    left_out: str | None = None

    @property
    def verdict(self) -> str:
        if self.value is None or self.target is None:
            return ""
        return "met" if self.value <= self.target else "missed"


def render_table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text, with those that were left out below."""
    lines = [("", "figure", "spread", "target", "")]
    lines += [
        (row.name, _figure(row.value, row), _figure(row.spread, row), _target(row), row.verdict)
        for row in rows
        if row.left_out is None
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:4], widths[1:4], strict=True)]
            + [line[4]]
        ).rstrip()
        for line in lines
    ]
    table += [f"left out: {row.name}: {row.left_out}" for row in rows if row.left_out is not None]
    return "\n".join(table)


def save_json(path: Path, about: dict[str, Any], rows: Sequence[Row]) -> None:
    listed = [{**asdict(row), "verdict": row.verdict} for row in rows]
    path.write_text(json.dumps({**about, "rows": listed}, indent=1) + "\n", encoding="utf-8")


def _figure(value: float | None, row: Row) -> str:
    if value is None:
        return ""
    if row.unit == "x":
        return f"{value:.3f} x"
    number = f"{value:.1f}" if abs(value) >= 0.05 or value == 0 else f"{value:.1e}"
    return f"{number} {row.unit}".rstrip()


def _target(row: Row) -> str:
    return "" if row.target is None else f"<= {row.target:.3g} {row.unit}".rstrip()
