"""Saving a capture, in the foreground or behind the program's back."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

from visualizer._block.annotations import Annotations
from visualizer._block.views import CaptureRecord
from visualizer.errors import OverwrittenError, StoreExistsError, StoreWriteError
from visualizer.store.captures import write_capture
from visualizer.store.queue import at_exit
from visualizer.store.writer import StoreWriter

__all__ = ["Saving", "raise_errors", "save_capture"]


class Saving:
    """A capture that is on its way to the disk.

    Attributes:
        path: The store's folder.
    """

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self.path: Path = writer.path

    @property
    def is_done(self) -> bool:
        """Whether it is there, or failed."""
        return self._writer.is_done

    def wait(self) -> None:
        """Wait until it is on the disk.

        Raises:
            StoreExistsError: Another process has made a store there meanwhile.
            StoreWriteError: It could not be written; what was committed before that is there.
            OverwrittenError: Values were changed before they were written, and are left out.
        """
        with _lock, contextlib.suppress(ValueError):
            _unseen.remove(self)
        self._writer.wait()

    def __repr__(self) -> str:
        return f"<saving to {self.path}: {'done' if self.is_done else 'on its way'}; .wait()>"


_unseen: list[Saving] = []
_lock = threading.RLock()


def save_capture(
    record: CaptureRecord,
    annotations: Annotations,
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
    background: bool,
) -> Saving:
    """Write a capture into a new store.

    Args:
        record: The capture.
        annotations: What it was told.
        path: The store's folder.
        overwrite: Replace the store that is there.
        background: Return at once, and write in a thread.
    Raises:
        StoreExistsError, StoreWriteError: As for `StoreWriter`.
    """
    raise_errors()
    writer = StoreWriter(
        path,
        model=record.model_name,
        spec=record.spec,
        overwrite=overwrite,
        is_in_background=background,
        memory="watched" if background else "ours",
        begins_later=True,
    )
    try:
        write_capture(writer, record, annotations)
        writer.finish()
    except BaseException:
        writer.abandon()
        raise
    saving = Saving(writer)
    if background:
        with _lock:
            _unseen.append(saving)
    else:
        writer.wait()
    return saving


def raise_errors() -> None:
    """Raise what went wrong in the background, and nobody has asked for yet.

    Raises:
        StoreExistsError, StoreWriteError, OverwrittenError: As for `Saving.wait`.
    """
    with _lock:
        done = [saving for saving in _unseen if saving.is_done]
    for saving in done:
        saving.wait()


def _wait_for_all() -> None:
    """Tell at the end of the process what went wrong."""
    for saving in list(_unseen):
        try:
            saving.wait()
        except (StoreExistsError, StoreWriteError, OverwrittenError) as error:
            print(f"visualizer: {error}", file=sys.stderr)


at_exit(_wait_for_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unseen.clear)
