"""What is in a store, on the terminal: from its index, without a tensor being read."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from visualizer._block.budget import in_words
from visualizer._printable import counted, shortened
from visualizer.captured import Captured
from visualizer.store.captures import StoredCapture
from visualizer.store.facts import Facts, facts_of, find_missing
from visualizer.store.reader import Store

__all__ = ["print_inspection"]

_LONGEST = 300


def print_inspection(path: str | os.PathLike[str]) -> None:
    """Print what a store is, what is in it, and what is missing and why.

    Args:
        path: Its folder.
    Raises:
        NotAStoreError: There is no store.
    """
    store = Store(path)
    store.damages += find_missing(store)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, fact in _lines(facts_of(store)):
        table.add_row(name, Text(shortened(fact, _LONGEST)))
    Console().print(Padding(table, (1, 0, 0, 2)))
    Captured(StoredCapture(store)).summary()


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    aside = f", and {facts.quarantined} in quarantine" if facts.quarantined else ""
    yield "store", str(facts.path)
    yield "state", facts.state
    yield "model", _model_name(facts.model)
    yield (
        "written with",
        ", ".join(f"{name} {version}" for name, version in facts.libraries.items()),
    )
    yield "on the disk", f"{in_words(facts.nbytes)} in {counted(facts.units, 'unit')}{aside}"
    yield "annotations", facts.annotations


def _model_name(model: object) -> str:
    if model is None:
        return "not given, or not known"
    module, _, name = str(model).rpartition(":")
    return f"{name} of {module}" if module else name
