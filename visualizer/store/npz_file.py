"""A capture as one `.npz` file, which `np.load` reads without pickle."""

from __future__ import annotations

import json
import os
import zipfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from visualizer._block.views import CaptureRecord
from visualizer.store.aside import check_free, expanded, written_aside
from visualizer.store.contents import items_of, read_plain
from visualizer.store.exported import Export, LeftOut
from visualizer.store.plain import OMITTED, leaves
from visualizer.store.safe_names import Names

__all__ = ["save_npz"]

_NAMES = "names.json"


def save_npz(
    record: CaptureRecord,
    path: str | os.PathLike[str],
    *,
    attention: bool,
    max_map_bytes: int,
    overwrite: bool,
) -> Export:
    """Write a capture to an `.npz` file, one array after the other.

    Args:
        record: The capture.
        path: The file.
        attention: Whether attention maps are written.
        max_map_bytes: How large one may be.
        overwrite: Replace the file that is there.
    Raises:
        StoreExistsError: There is one.
        StoreWriteError: It can't be written; nothing is left behind.
    """
    target = expanded(path)
    check_free(target, overwrite=overwrite)
    with (
        written_aside(target) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        written = _Members(archive)
        for item in items_of(record, attention=attention):
            tree = read_plain(item, written.leave_out, max_bytes=max_map_bytes)
            key = item.key if item.is_alone else f"{item.key}.call_{item.number}"
            for name, leaf in () if tree is OMITTED else leaves(tree, key):
                written.add(name, leaf)
        written.add_names()
    nbytes = target.stat().st_size
    return Export(target, (target,), written.count, nbytes, tuple(written.left_out))


class _Members:
    """The arrays that were written so far."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = Names()
        self._names.take(_NAMES)
        self._changed: dict[str, str] = {}
        self.left_out: list[LeftOut] = []
        self.count = 0

    def leave_out(self, name: str, why: str) -> None:
        self.left_out.append(LeftOut(name, why))

    def add(self, name: str, value: Any) -> None:
        """Write a value, under a name that is safe where the file is unpacked."""
        array = np.asarray(value)
        if array.dtype.hasobject:
            what = (
                "it is None" if value is None else f"{type(value).__name__} that no array can hold"
            )
            return self.leave_out(name, what)
        if isinstance(value, str) and array.item() != value:
            return self.leave_out(name, "text that ends with NUL, which arrays cut off")
        key = self._names.take(name)
        if key != name:
            self._changed[key] = name
        self._write(key, array)
        self.count += 1
        return None

    def add_names(self) -> None:
        """Write which names were changed, as JSON."""
        if self._changed:
            self._write(_NAMES, np.asarray(json.dumps(self._changed)))

    def _write(self, key: str, array: NDArray[Any]) -> None:
        member: IO[bytes]
        with self._archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, array, allow_pickle=False)
