"""What a capture took, as a table on the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from visualizer._block.budget import in_words
from visualizer._block.entry import Entry
from visualizer._block.views import AttentionView
from visualizer._printable import shortened
from visualizer.attention import AttentionMap

__all__ = ["Row", "attention_rows", "entry_rows", "print_summary"]

_LONGEST, _LONGEST_LINE = 120, 1000


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        what: What was taken, as "output" or "attention (sdpa)".
        where: A module's path or a function's name.
        calls: How many values.
        shapes: Their types and shapes.
        size: Their bytes.
    """

    what: str
    where: str
    calls: int
    shapes: str
    size: int


def print_summary(rows: Iterable[Row], total: str, missing: Iterable[str]) -> None:
    """Print a table of what was taken, and beneath it what is missing and why.

    Layers that only differ by their number share a line.

    Args:
        rows: What was taken.
        total: How much that is.
        missing: Why something is not there, a line for each.
    """
    merged = _merge(rows)
    table = _table(merged, total) if merged else "Nothing was captured."
    # as text: paths and messages are no markup
    lines = [Text(f"• {shortened(line, _LONGEST_LINE)}") for line in missing]
    Console().print(Group(table, *lines))


def entry_rows(what: str, view: Mapping[str, Sequence[Entry]]) -> Iterator[Row]:
    """Yield a row for each place that has entries."""
    for where, entries in view.items():
        if entries:
            shapes = [_shape(entry) for entry in entries]
            size = sum(entry.nbytes for entry in entries)
            yield Row(what, where or "(the model)", len(entries), _some(shapes), size)


def attention_rows(maps: AttentionView) -> Iterator[Row]:
    """Yield a row for each module that attended."""
    groups: dict[tuple[str | None, str], list[AttentionMap]] = {}
    for made in maps:
        groups.setdefault((made.module_path, made.source), []).append(made)
    for (path, source), group in groups.items():
        where = "outside of modules" if path is None else path or "(the model)"
        shapes = [f"{made.shape}" for made in group]
        yield Row(f"attention ({source})", where, len(group), _some(shapes), _bytes(group))


def _bytes(maps: Sequence[AttentionMap]) -> int:
    held: dict[Any, int] = {}
    for made in maps:
        record: Any = made.record  # that of a capture
        held |= record.held()
    return sum(held.values())


def _merge(rows: Iterable[Row]) -> list[Row]:
    """Return one row for layers that only differ by their number."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.what, re.sub(r"\d+", "*", row.where), row.shapes), []).append(row)
    merged = []
    for (what, pattern, shapes), group in groups.items():
        where = group[0].where if len(group) == 1 else f"{pattern}  × {len(group)}"
        calls, size = sum(row.calls for row in group), sum(row.size for row in group)
        merged.append(Row(what, where, calls, shapes, size))
    return merged


def _table(rows: Sequence[Row], total: str) -> Table:
    table = Table(box=box.SIMPLE, caption=f"{total}; memory that is shared counts once")
    table.add_column("what", overflow="fold")
    table.add_column("from", overflow="fold")
    table.add_column("calls", justify="right", no_wrap=True)
    table.add_column("shape", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    for row in rows:
        what, shapes = (shortened(text, _LONGEST) for text in (row.what, row.shapes))
        cells = Text(str(row.calls)), Text(shapes), Text(in_words(row.size))
        table.add_row(Text(what), _Path(shortened(row.where, _LONGEST)), *cells)
    return table


class _Path:
    """A module's path, which a narrow column breaks behind its dots."""

    def __init__(self, path: str) -> None:
        self._parts = re.findall(r"  × \d+$|(?:(?!  × \d+$)[^.])+\.?|\.", path)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widest = max((cell_len(part) for part in self._parts), default=0)
        whole = cell_len("".join(self._parts))
        return Measurement(min(widest, options.max_width), min(whole, options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        line = ""
        for part in self._parts:
            if line and cell_len(f"{line}{part}".rstrip()) > options.max_width:
                yield Text(line.rstrip(), overflow="fold")
                line = ""
            line += part if line else part.lstrip()
        yield Text(line.rstrip(), overflow="fold")


def _shape(entry: Entry) -> str:
    if entry.shape is None:
        return entry.type_name
    return f"{entry.dtype} {entry.shape}"


def _some(shapes: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(shapes))
    more = f" and {len(distinct) - 2} others" if len(distinct) > 2 else ""
    return ", ".join(distinct[:2]) + more
