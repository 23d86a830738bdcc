"""A store that is being written: values in, units on the disk."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from visualizer.errors import (
    DamagedError,
    OverwrittenError,
    StoreExistsError,
    StoreWriteError,
)
from visualizer.store.device import Moment, begin_after, moment
from visualizer.store.durable import Owner, sync_folder
from visualizer.store.index import Row, parse_about, parse_index
from visualizer.store.layout import Layout
from visualizer.store.pieces import Ref, hash_of
from visualizer.store.queue import queue
from visualizer.store.units import Content, Final, Unit, commit, render_about

__all__ = ["UNIT_BYTES", "StoreWriter"]

UNIT_BYTES = 64 * 2**20
"""Bytes of tensors after which a unit is written."""

_LIBRARIES = ("torch", "numpy", "safetensors", "transformers", "timm", "diffusers")


class StoreWriter:
    """Writes values into a new store, some megabytes at a time.

    A unit that was written survives whatever happens to the process. The store is whole once
    `close` has returned; a context manager closes it, and so does a normal exit.

    Args:
        path: The store's folder; made if need be.
        model: The model's name, for who reads it.
        spec: What was asked for; its hash tells whether two stores hold the same.
        overwrite: Replace the store that is there, once this one is whole.
        is_in_background: Write in a thread. Errors are raised by the next `add`, and by `close`.
        is_guarded: What waits to be written is not copied, though others may write to its memory.
            What was changed so is left out, and `close` raises.
        max_bytes: How many bytes may wait for the thread.
    Raises:
        StoreExistsError: There is a store already, or something else.
        StoreWriteError: The folder can't be written to, or somebody else is writing there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        spec: Any = None,
        overwrite: bool = False,
        is_in_background: bool = False,
        is_guarded: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        self._layout = Layout(Path(os.path.expanduser(os.fspath(path))).absolute())
        self._is_in_background, self._is_guarded = is_in_background, is_guarded
        self._max_bytes = max_bytes
        self._known: dict[Content, Ref] = {}
        self._futures: list[Future[None]] = []
        self._changed: list[Row] = []
        self._error: Exception | None = None
        self._is_closed = False
        self._lock = threading.RLock()
        with self._writing():
            self._generation, first = _prepare(self._layout, overwrite)
            self._about = _about(model, spec, self._generation)
            self._units: list[int] = []
            self._unit = Unit(first, self._generation, is_guarded)
            self._owner = _own(self._layout)
            if self._generation == 1:
                _announce(self._layout, self._about)
        self._pid = os.getpid()
        _open_writers.add(self)

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._layout.root

    def add(self, row: Row) -> None:
        """Add a value.

        Args:
            row: Its facts, with the value itself as `value`. What is stored is how it is now,
                unless the writer is guarded.
        Raises:
            StoreWriteError: Writing failed, now or before.
        """
        with self._lock:
            self._check_open()
            self._unit.add(row, self._known)
            is_full = self._unit.nbytes >= UNIT_BYTES
            if not self._is_guarded and (self._is_in_background or not is_full):
                self._unit.own()
            if is_full:
                self._write_unit(None)

    def add_later(self, nbytes: int, make: Callable[[], Row]) -> None:
        """Add a value that is made when it is written, in the background if that is where.

        Args:
            nbytes: About how much it has.
            make: Returns it. Never raises.
        Raises:
            StoreWriteError: Writing failed, now or before.
        """
        if not self._is_in_background:
            return self.add(make())
        with self._lock:
            self._check_open()
            self._unit.add_later(nbytes, make)
            if self._unit.nbytes >= UNIT_BYTES:
                self._write_unit(None)
        return None

    def close(self) -> None:
        """Write what is left, and wait until everything is on the disk.

        Raises:
            StoreWriteError: Writing failed; what was committed before stays.
            OverwrittenError: Values were changed before they were written, and are left out.
        """
        self.finish()
        self.wait()

    def finish(self) -> None:
        """Hand over what is left, and don't wait for it if it is written in the background."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                _open_writers.discard(self)
                if self._error is None:
                    self._write_unit(self._about)
                else:
                    self._owner.release()

    def abandon(self) -> None:
        """Write nothing more; what was committed stays."""
        with self._lock:
            self._is_closed = True
            _open_writers.discard(self)
            self._error = self._error or RuntimeError("it was given up before its end")
            self._unit.let_go()
        while self._futures:
            self._futures.pop(0).result()
        self._owner.release()

    def wait(self) -> None:
        """Wait until everything that was handed over is on the disk.

        Raises:
            StoreWriteError, OverwrittenError: As for `close`.
        """
        while self._futures:
            self._futures.pop(0).result()
        self._raise_error()
        if self._changed:
            changed, self._changed = self._changed, []
            some = ", ".join(_name_of(row) for row in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise OverwrittenError(
                f"{some}{more} of {self.path} were written to before they were on the disk, and "
                f"are left out. Wait before you change them: captured.save(…, background=True)"
                f".wait(), or save without background"
            )

    @property
    def is_done(self) -> bool:
        """Whether nothing waits to be written."""
        return all(future.done() for future in self._futures)

    def _check_open(self) -> None:
        self._raise_error()
        if self._is_closed:
            raise ValueError(f"the store {self.path} is closed, and takes no more values")
        if self._pid != os.getpid():
            raise StoreWriteError(
                f"{self.path} is written to by the process that opened it, {self._pid}, and not by "
                f"those that it forked; give each a store of its own"
            )

    def _write_unit(self, about: Mapping[str, Any] | None) -> None:
        unit = self._unit
        self._unit = Unit(unit.number + 1, self._generation, self._is_guarded)
        self._units.append(unit.number)
        final = None if about is None else Final(about, tuple(self._units))

        now = moment()

        def job() -> None:
            self._commit(unit, final, now)

        if self._is_in_background:
            self._futures = [each for each in self._futures if not each.done()]
            self._futures.append(queue.submit(unit.nbytes, job, max_bytes=self._max_bytes))
        else:
            job()
            self._raise_error()

    def _commit(self, unit: Unit, final: Final | None, now: Moment) -> None:
        """Write a unit, unless an earlier one failed: then nothing more is."""
        try:
            if self._error is not None:
                unit.let_go()
                return
            begin_after(now)
            unit.make_rows(self._known)
            self._changed += commit(self._layout, self._owner, unit, final)
            if unit.number == self._units[0]:
                sync_folder(self._layout.root)
                sync_folder(self._layout.root.parent)
            if final is not None:
                self._remove_replaced(final)
        except Exception as error:
            self._error = error
        finally:
            if final is not None or self._error is not None:
                self._owner.release()

    def _remove_replaced(self, final: Final) -> None:
        """Remove the units that this store stands in the place of; their indexes first."""
        layout, kept = self._layout, set(final.units)
        for folder, file in ((layout.index, layout.index_of), (layout.shards, layout.shard)):
            for unit in layout.units_in(folder):
                if unit not in kept:
                    with contextlib.suppress(OSError):
                        file(unit).unlink()

    def _raise_error(self) -> None:
        if self._error is not None:
            error = self._error
            raise _explain(error, self._layout) from error

    @contextlib.contextmanager
    def _writing(self) -> Any:
        try:
            yield
        except (StoreExistsError, StoreWriteError):
            raise
        except OSError as error:
            raise _explain(error, self._layout) from error

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ours = () if error is None else (StoreWriteError, OverwrittenError)
        with contextlib.suppress(*ours):
            self.close()


_open_writers: set[StoreWriter] = set()


def _close_writers() -> None:
    for writer in list(_open_writers):
        writer.close()


atexit.register(_close_writers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_writers.clear)


def _prepare(layout: Layout, overwrite: bool) -> tuple[int, int]:
    """Make the folders; return the generation and the number of the first unit."""
    root = layout.root
    if root.exists() and not root.is_dir():
        raise StoreExistsError(f"{root} is a file; give the path of a folder that is to be made")
    is_there = layout.is_there()
    if is_there and not overwrite:
        raise StoreExistsError(
            f"{root} holds a store already. Give another path, or overwrite=True to replace it; "
            f"it stays until the new one is whole"
        )
    if not is_there and root.exists() and any(entry.name != "tmp" for entry in root.iterdir()):
        raise StoreExistsError(
            f"{root} has other files in it, and nothing is mixed with them. Give a path that does "
            f"not exist, as {root / 'run'}"
        )
    for folder in (layout.shards, layout.index, layout.tmp):
        folder.mkdir(parents=True, exist_ok=True)
    units = {*layout.units_in(layout.index), *layout.units_in(layout.shards)}
    return _last_generation(layout) + 1, max(units, default=-1) + 1


def _last_generation(layout: Layout) -> int:
    """Return the generation that is there; 0 where there is none."""
    try:
        return int(parse_about(layout.about.read_bytes())["generation"])
    except (OSError, ValueError, TypeError, KeyError, DamagedError):
        pass
    last = 0
    for unit in layout.units_in(layout.index):
        with contextlib.suppress(OSError, ValueError, DamagedError):
            last = max(last, parse_index(layout.index_of(unit).read_bytes(), unit).generation)
    return max(last, 1 if layout.is_there() else 0)


def _own(layout: Layout) -> Owner:
    try:
        return Owner(layout.tmp, is_alone=True)
    except BlockingIOError:
        raise StoreWriteError(
            f"another process is writing to {layout.root} at this moment; give each its own path"
        ) from None


def _about(model: str | None, spec: Any, generation: int) -> dict[str, Any]:
    modules = ((name, sys.modules.get(name)) for name in _LIBRARIES)
    versions = {name: getattr(module, "__version__", None) for name, module in modules}
    return {
        "visualizer_store": 1,
        "generation": generation,
        "model": model,
        "libraries": {
            "visualizer": sys.modules["visualizer"].__version__,
            "python": sys.version.split()[0],
            **{name: str(version) for name, version in versions.items() if version is not None},
        },
        "spec_hash": hash_of(json.dumps(spec, sort_keys=True, default=repr).encode()),
    }


def _announce(layout: Layout, about: Mapping[str, Any]) -> None:
    """Say what this is going to be, unless another process has done so meanwhile."""
    try:
        with layout.about.open("xb") as file:
            file.write(render_about(about, None))
    except FileExistsError:
        raise StoreExistsError(f"{layout.root} holds a store already") from None


def _explain(error: Exception, layout: Layout) -> StoreWriteError:
    return StoreWriteError(
        f"{layout.root} can't be written to: {error}. What was committed before stays readable: "
        f"visualizer.load({str(layout.root)!r})"
    )


def _name_of(row: Row) -> str:
    where = row.module_path or row.function or "the model"
    return f"the {row.variable or row.kind} of {where}, call {row.call}"
