"""Files that are written aside and then renamed, so that there are whole ones only."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from visualizer.errors import StoreExistsError, StoreWriteError, VisualizerError
from visualizer.store.durable import sync_folder

__all__ = ["check_free", "expanded", "written_aside"]


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return the place that a user's path stands for: absolute, "~" and links followed."""
    return Path(os.path.realpath(os.path.expanduser(os.fspath(path))))


def check_free(path: Path, *, overwrite: bool) -> None:
    """Make sure that a file can be put in a place.

    Raises:
        StoreExistsError: There is a file, and `overwrite` is false; or what is no file.
    """
    if path.is_file() or (path.is_symlink() and not path.exists()):
        if not overwrite:
            raise StoreExistsError(
                f"{path} is there already; overwrite=True replaces it, or write to another place"
            )
    elif path.exists():
        raise StoreExistsError(f"{path} is there, and is no file; write to another place")


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write to, which is put in its place once it is whole and on the disk.

    Where that fails or is refused, nothing is left behind, and what was there before stays.

    Args:
        path: The place. Its folders are made.
    Raises:
        StoreWriteError: It can't be written.
    """
    made: list[Path] = []
    aside = path.with_name(f".visualizer-{secrets.token_hex(8)}.tmp")
    try:
        _make_folders(path.parent, made)
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink()
        for folder in reversed(made):
            with suppress(OSError):  # somebody else put something there meanwhile
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, VisualizerError):
            raise StoreWriteError(f"{path} can't be written: {error}") from error
        raise


def _make_folders(folder: Path, made: list[Path]) -> None:
    """Make a folder and those around it, and note which."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        made.append(each)
