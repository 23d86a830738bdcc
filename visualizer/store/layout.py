"""Where the files of a store are. Their names come from numbers, never from what is stored."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from visualizer.errors import DamagedError

__all__ = ["Layout", "unit_name"]

_UNIT = re.compile(r"u(\d{8})\.(?:safetensors|jsonl)")
_MOST_UNITS = 10**8


def unit_name(unit: int) -> str:
    """Return what a unit is called: "u00000042"."""
    return f"u{unit:08d}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one store.

    Attributes:
        root: Its folder.
    """

    root: Path

    @property
    def about(self) -> Path:
        """What the store is, and whether it is whole."""
        return self.root / "store.json"

    @property
    def shards(self) -> Path:
        """The tensors: a safetensors file a unit."""
        return self.root / "shards"

    @property
    def index(self) -> Path:
        """What they are: a file of JSON lines a unit. Written last: a unit without one is none."""
        return self.root / "index"

    @property
    def tmp(self) -> Path:
        """What is being written: a folder for each writer."""
        return self.root / "tmp"

    @property
    def quarantine(self) -> Path:
        """Damaged units that were put aside."""
        return self.root / "quarantine"

    def shard(self, unit: int) -> Path:
        """Return the file of a unit's tensors."""
        return self.shards / f"{unit_name(unit)}.safetensors"

    def index_of(self, unit: int) -> Path:
        """Return the file of a unit's rows."""
        return self.index / f"{unit_name(unit)}.jsonl"

    def units_in(self, folder: Path) -> list[int]:
        """Return the units that have a file in a folder."""
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        found = (_UNIT.fullmatch(name) for name in names)
        return sorted(int(match.group(1)) for match in found if match is not None)

    def is_there(self) -> bool:
        """Tell whether there is something of a store, whole or not."""
        return self.about.exists() or bool(self.units_in(self.index) or self.units_in(self.shards))

    def check_inside(self, file: Path, unit: int) -> None:
        """Make sure that a file lies in the store's folder, also if it is a link.

        Raises:
            DamagedError: It does not.
        """
        root = os.path.realpath(self.root)
        if os.path.commonpath([root, os.path.realpath(file)]) != root:
            raise DamagedError(
                f"{file} of unit {unit_name(unit)} is a link that leads out of the store {root}; "
                f"it is not followed. Put the file itself there"
            )


def is_unit(value: object) -> bool:
    """Tell whether a value that was read is the number of a unit."""
    return type(value) is int and 0 <= value < _MOST_UNITS
