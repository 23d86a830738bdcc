"""Files that survive: written aside, forced to the disk, renamed; and who is writing them."""

from __future__ import annotations

import os
import secrets
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Owner", "sync_file", "sync_folder"]

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: nothing is locked, and nothing swept
    fcntl = None  # type: ignore[assignment]


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Force to the disk which files a folder has."""
    if os.name == "posix":  # elsewhere folders can't be opened
        sync_file(path)


class Owner:
    """A writer's own folder under `tmp/`, which is locked for as long as its process lives.

    The lock is the kernel's, and goes with the process, however that ends. So a folder whose lock
    is free belongs to nobody, and is removed by the next writer.

    Args:
        tmp: The store's `tmp/`.
        is_alone: Whether no other writer may be at work in the store.
    Raises:
        BlockingIOError: Another one is.
    """

    def __init__(self, tmp: Path, *, is_alone: bool) -> None:
        tmp.mkdir(exist_ok=True)
        self.folder = tmp / secrets.token_hex(8)
        with _locked(tmp / "lock"):
            alive = _sweep(tmp)
            if is_alone and alive:
                raise BlockingIOError(f"somebody else is writing to {tmp.parent}")
            self.folder.mkdir()
            try:
                self._descriptor: int | None = os.open(
                    self.folder / "owner", os.O_CREAT | os.O_RDWR, 0o666
                )
            except OSError:
                self.folder.rmdir()
                raise
            _lock(self._descriptor, "LOCK_NB")
        _owners.add(self)
        self.mode = os.fstat(self._descriptor).st_mode & 0o777
        """Permissions of a new file, as the process's umask has them."""

    def release(self) -> None:
        """Remove the folder."""
        if self._descriptor is not None:
            try:
                os.unlink(os.path.join(self.folder, "owner"))
                os.rmdir(self.folder)
            except OSError:  # something is left in it
                shutil.rmtree(self.folder, ignore_errors=True)
            self.forget()

    def forget(self) -> None:
        """Let go of the lock; a forked process does so with its parent's, which keeps it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()


def _forget_owners() -> None:
    for owner in list(_owners):
        owner.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_owners)


def _sweep(tmp: Path) -> int:
    """Remove what dead writers left; return how many are alive."""
    alive = 0
    for folder in [entry for entry in tmp.iterdir() if entry.is_dir()]:
        descriptor = None
        try:
            descriptor = os.open(folder / "owner", os.O_RDWR)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:  # it died before it had one: they are made under our lock
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            alive += 1
        except (OSError, AttributeError):  # not ours to open, or files can't be locked here
            pass
        finally:
            if descriptor is not None:
                os.close(descriptor)
    return alive


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, where the file system has them."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *flags: str) -> None:
    """Lock a file for this process, where the file system has locks."""
    with suppress(OSError, AttributeError):
        fcntl.flock(descriptor, sum((getattr(fcntl, flag) for flag in flags), fcntl.LOCK_EX))
