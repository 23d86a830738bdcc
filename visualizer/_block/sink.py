"""Where values go instead of memory."""

from __future__ import annotations

from typing import Protocol

from visualizer._block.entry import Entry
from visualizer.attention import AttentionMap

__all__ = ["ValueSink"]


class ValueSink(Protocol):
    """Takes values while a block runs, and gives them back when they are read."""

    @property
    def nbytes(self) -> int:
        """Bytes that it has taken."""
        ...

    def put(self, entry: Entry) -> Entry:
        """Take a value, and return an entry that reads it from where it is then.

        Raises:
            Exception: It can't be taken.
        """
        ...

    def put_map(self, made: AttentionMap, site: int) -> None:
        """Take what a map is computed from, and have the map read it from there.

        Args:
            made: The map.
            site: The place of its module among those that attended.
        Raises:
            Exception: It can't be taken.
        """
        ...
