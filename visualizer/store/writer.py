"""A store that is being written: values in, units on the disk."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from visualizer._background import hurry
from visualizer.errors import (
    OverwrittenError,
    StoreExistsError,
    StoreWriteError,
)
from visualizer.store.beginning import Begun, Claim, begin, check_access, check_place
from visualizer.store.device import Moment, begin_after, moment
from visualizer.store.durable import sync_file, sync_folder
from visualizer.store.index import Row
from visualizer.store.layout import Layout
from visualizer.store.pieces import Known, hash_of
from visualizer.store.queue import at_exit, queue
from visualizer.store.units import Final, Memory, OnWritten, Unit, commit

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
        memory: Whose the values' memory is, before it is on the disk. "others": it is copied.
            "watched": it is not, and what was changed meanwhile is left out, and `close` raises.
            "ours": nobody changes it.
        max_bytes: How many bytes may wait for the thread.
        begins_later: Leave it to the thread to make the store. What it finds in its way then is
            raised as other errors are.
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
        memory: Memory = "others",
        max_bytes: int | None = None,
        begins_later: bool = False,
    ) -> None:
        self._layout = Layout(Path(os.path.expanduser(os.fspath(path))).absolute())
        self._model, self._spec, self._overwrite = model, spec, overwrite
        self._is_in_background, self._memory = is_in_background, memory
        self._max_bytes = max_bytes
        self._unit_bytes = UNIT_BYTES if max_bytes is None else min(UNIT_BYTES, max_bytes // 2)
        self._known = Known()
        self._futures: list[Future[None]] = []
        self._changed: list[Row] = []
        self._error: BaseException | None = None
        self._is_closed = False
        self._lock = threading.RLock()
        self._begun: Begun | None = None
        with self._writing():
            self._claim = Claim(self._layout)
            try:
                if is_in_background and begins_later:
                    check_place(self._layout, overwrite)
                    check_access(self._layout)
                else:
                    self._begin()
            except BaseException:
                self._release()
                raise
        self._units = 0
        self._unit = Unit(self._known, memory)
        self._pid = os.getpid()
        _open_writers.add(self)

    def _begin(self) -> Begun:
        if self._begun is None:
            self._begun = begin(self._layout, self._overwrite, _about(self._model, self._spec))
        return self._begun

    def _release(self) -> None:
        if self._begun is not None:
            self._begun.owner.release()
        self._claim.release()

    @property
    def generation(self) -> int:
        """Which writing of the store this is. Not known before it was begun."""
        assert self._begun is not None, "the store is made later"
        return self._begun.generation

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._layout.root

    def add(self, row: Row, on_written: OnWritten | None = None) -> None:
        """Add a value.

        Args:
            row: Its facts, with the value itself, as it is now, as `value`.
            on_written: Is told the row once it is on the disk, by the thread that wrote it.
        Raises:
            StoreWriteError: Writing failed, now or before.
        """
        with self._lock:
            self._check_open()
            self._unit.add(row, on_written)
            if self._unit.nbytes >= self._unit_bytes:
                self._write_unit(is_last=False)

    def add_later(
        self,
        nbytes: int,
        make: Callable[[], Row],
        on_written: OnWritten | None = None,
        *,
        is_shared: bool = True,
    ) -> Callable[[], None]:
        """Add a value that is made when it is written, in the background if that is where.

        Args:
            nbytes: About how much it has.
            make: Returns it. Never raises.
            on_written: As for `add`.
            is_shared: Whether others have its memory, too.
        Returns:
            What makes it now, as it must be before somebody may change the value.
        Raises:
            StoreWriteError: Writing failed, now or before.
        """
        with self._lock:
            self._check_open()
            make_now: Callable[[], None] = _is_made
            if self._is_in_background:
                make_now = self._unit.add_later(nbytes, make, on_written, is_shared=is_shared)
            else:
                self._unit.add(make(), on_written)
            if self._unit.nbytes >= self._unit_bytes:
                self._write_unit(is_last=False)
        return make_now

    def close(self) -> None:
        """Write what is left, and wait until everything is on the disk.

        Raises:
            StoreWriteError: Writing failed; what was committed before stays.
            OverwrittenError: Values were changed before they were written, and are left out.
            StoreExistsError: There is something already; with `begins_later`.
        """
        self.finish()
        if self._is_ours:
            self.wait()

    def finish(self) -> None:
        """Hand over what is left, and don't wait for it if it is written in the background.

        A process that was forked hands nothing over: the store is its parent's.
        """
        if not self._is_ours:
            return
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                _open_writers.discard(self)
                if self._error is None:
                    self._write_unit(is_last=True)
                else:
                    self._drain()
                    self._release()

    def abandon(self) -> None:
        """Write nothing more; what was committed stays."""
        if not self._is_ours:
            return
        with self._lock:
            self._is_closed = True
            _open_writers.discard(self)
            self._error = self._error or RuntimeError("it was given up before its end")
            self._unit.let_go()
        self._drain()
        self._release()

    def wait(self) -> None:
        """Wait until everything that was handed over is on the disk.

        Raises:
            StoreExistsError, StoreWriteError, OverwrittenError: As for `close`.
        """
        self._check_ours()
        self._drain()
        self._raise_error()
        if self._changed:
            changed = self._changed
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
        return all(future.done() for future in list(self._futures))

    @property
    def _is_ours(self) -> bool:
        return self._pid == os.getpid()

    def _drain(self) -> None:
        with hurry():
            for future in list(self._futures):
                future.result()

    def _check_open(self) -> None:
        self._check_ours()
        self._raise_error()
        if self._is_closed:
            raise ValueError(f"the store {self.path} is closed, and takes no more values")

    def _check_ours(self) -> None:
        if not self._is_ours:
            raise StoreWriteError(
                f"{self.path} is written to by the process that opened it, {self._pid}, and not by "
                f"those that it forked; give each a store of its own"
            )

    def _write_unit(self, is_last: bool) -> None:
        try:
            self._hand_over(is_last)
        except BaseException as error:  # as of Ctrl-C: without this unit nothing is whole
            self._error = self._error or error
            raise

    def _hand_over(self, is_last: bool) -> None:
        unit, number = self._unit, self._units
        self._unit, self._units = Unit(self._known, self._memory), number + 1
        now = moment()

        def job() -> None:
            self._commit(unit, number, is_last, now)

        if self._is_in_background:
            self._futures = [each for each in self._futures if not each.done()]
            self._futures.append(queue.submit(unit.nbytes, job, max_bytes=self._max_bytes))
        else:
            job()
            self._raise_error()

    def _commit(self, unit: Unit, number: int, is_last: bool, now: Moment) -> None:
        """Write a unit, unless an earlier one failed: then nothing more is."""
        try:
            if self._error is not None:
                unit.let_go()
                return
            begun = self._begin()
            begin_after(now)
            unit.make_rows()
            final = begun.final(number + 1) if is_last else None
            self._changed += commit(self._layout, begun.owner, begun.place(number), unit, final)
            if number == 0:
                self._sync_new(begun, final)
            if final is not None and begun.generation > 1:
                self._remove_replaced(final)
        except BaseException as error:
            self._error = error
            unit.let_go()
            if not isinstance(error, Exception):
                raise
        finally:
            if is_last or self._error is not None:
                self._release()

    def _sync_new(self, begun: Begun, final: Final | None) -> None:
        """Force to the disk that there is a store, once it has something in it."""
        if final is None:  # or else its own store.json is there
            if begun.generation == 1:
                sync_file(self._layout.about)
            sync_folder(self._layout.root)
        for folder in begun.new_in:
            sync_folder(folder)

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
            error = _explain(self._error, self._layout)
            raise error from (None if error is self._error else self._error)

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
        ours = () if error is None else _ERRORS
        with contextlib.suppress(*ours):
            self.close()


def _is_made() -> None:
    """Stand in for what makes a row that is made already."""


_ERRORS = (StoreExistsError, StoreWriteError, OverwrittenError)
_open_writers: set[StoreWriter] = set()


def _close_writers() -> None:
    for writer in list(_open_writers):
        try:
            writer.close()
        except _ERRORS as error:
            print(f"visualizer: {error}", file=sys.stderr)


at_exit(_close_writers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_writers.clear)


def _about(model: str | None, spec: Any) -> dict[str, Any]:
    modules = ((name, sys.modules.get(name)) for name in _LIBRARIES)
    versions = {name: getattr(module, "__version__", None) for name, module in modules}
    return {
        "visualizer_store": 1,
        "model": model,
        "libraries": {
            "visualizer": sys.modules["visualizer"].__version__,
            "python": sys.version.split()[0],
            **{name: str(version) for name, version in versions.items() if version is not None},
        },
        "spec_hash": hash_of(json.dumps(spec, sort_keys=True, default=repr).encode()),
    }


def _explain(error: BaseException, layout: Layout) -> StoreExistsError | StoreWriteError:
    if isinstance(error, StoreExistsError | StoreWriteError):
        return error
    return StoreWriteError(
        f"{layout.root} can't be written to: {error}. What was committed before stays readable: "
        f"visualizer.load({str(layout.root)!r})"
    )


def _name_of(row: Row) -> str:
    where = row.module_path or row.function or "the model"
    return f"the {row.variable or row.kind} of {where}, call {row.call}"
