"""Where the files of a store are. Their names come from numbers, never from what is stored."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from visualizer.errors import DamagedError

__all__ = ["Layout", "Place", "is_unit", "open_file", "unit_name"]

_UNIT = re.compile(r"u(\d{8})\.(?:safetensors|jsonl)")
_MOST_UNITS = 10**8


def unit_name(unit: int) -> str:
    """Return what a unit is called: "u00000042"."""
    return f"u{unit:08d}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a unit is written.

    Attributes:
        number: The unit's.
        generation: Which writing of the store it belongs to.
    """

    number: int
    generation: int


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
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = (_UNIT.fullmatch(name) for name in names)
        return sorted(int(match.group(1)) for match in found if match is not None)

    def is_there(self) -> bool:
        """Tell whether there is something of a store, whole or not."""
        return self.about.exists() or bool(self.units_in(self.index) or self.units_in(self.shards))

    def is_beginning(self, entry: Path) -> bool:
        """Tell whether an entry of the root is what a writer leaves that was killed at once."""
        if entry in (self.shards, self.index):
            return entry.is_dir() and not any(entry.iterdir())
        return entry == self.tmp

    def read(self, file: Path, unit: int | None = None) -> bytes:
        """Return what a small file of the store holds.

        Raises:
            OSError: It can't be read.
            DamagedError: It is no file, or a link that leads elsewhere.
        """
        self.check_inside(file, unit)
        with open(open_file(file), "rb") as opened:
            return opened.read()

    def check_inside(self, file: Path, unit: int | None) -> None:
        """Make sure that a file lies in the store's folder, also if it is a link.

        Raises:
            DamagedError: It does not.
        """
        root = os.path.realpath(self.root)
        if os.path.commonpath([root, os.path.realpath(file)]) != root:
            whose = "" if unit is None else f" of unit {unit_name(unit)}"
            raise DamagedError(
                f"{file}{whose} is a link that leads out of the store {root}; it is not followed. "
                f"Put the file itself there"
            )


def open_file(path: Path) -> int:
    """Open a file to be read, and return its descriptor; a pipe in its place is not waited for.

    Raises:
        OSError: It can't be opened.
        DamagedError: It is a folder, a pipe or a device.
    """
    flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError(f"{path} is no file")
    return descriptor


def is_unit(value: object) -> bool:
    """Tell whether a value that was read is the number of a unit."""
    return type(value) is int and 0 <= value < _MOST_UNITS
