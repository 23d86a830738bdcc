"""What is captured at one place: a variable of a function, or the output of a module."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch

from visualizer._block.budget import Budget, in_words
from visualizer._block.entry import Entry
from visualizer._block.kept import Kept
from visualizer._block.options import Keep
from visualizer._block.places import Place
from visualizer._block.sink import ValueSink
from visualizer._capture.snapshot import CannotRecordError, Narrow, nbytes, snapshot_narrow
from visualizer._capture.tensors import Obstacle, find_obstacle

__all__ = ["Site", "SiteRecorder", "is_second_time"]


@dataclass(slots=True, eq=False)
class Site:
    """One place, and what was captured there.

    Attributes:
        kind: "local", "output" or "input".
        name: What messages call it.
        function: The function's `module:qualname`.
        variable: The local's name.
        entries: What was captured, in call order.
        calls: How many calls there were.
        unbound: How many of them ended with the name bound to nothing.
        reasons: How many were not recorded, by reason.
        error: The first error that recording raised.
        over_budget: The site stopped, since the capture's limit was reached.
    """

    kind: str
    name: str
    function: str | None = None
    variable: str | None = None
    entries: list[Entry] = field(default_factory=list)
    calls: int = 0
    unbound: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    error: Exception | None = None
    over_budget: str | None = None

    def pass_over(self, reason: str) -> None:
        """Note that a call is not recorded."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


class SiteRecorder:
    """Copies values and keeps them, as far as that is wanted and allowed.

    Args:
        keep: Which calls.
        budget: Counts the bytes.
        sink: Where values go instead of memory.
    """

    def __init__(self, keep: Keep, budget: Budget, sink: ValueSink | None = None) -> None:
        self._keep, self._budget, self._sink = keep, budget, sink
        self._lock = threading.RLock()

    def begin(self, site: Site) -> int:
        """Count a call of a site, and return its index."""
        with self._lock:
            site.calls += 1
            return site.calls - 1

    def record(self, site: Site, value: Any, place: Place, layer: int | None, call: int) -> None:
        """Keep a value. Never raises an `Exception`: what goes wrong is noted."""
        if site.over_budget is not None or not self._keep.wants(call):
            return
        try:
            self._record(site, value, place, layer, call)
        except CannotRecordError as reason:
            site.pass_over(str(reason))
        except Exception as error:
            site.error = site.error or error.with_traceback(None)

    def _record(self, site: Site, value: Any, place: Place, layer: int | None, call: int) -> None:
        obstacle = find_obstacle()
        if obstacle is not None:
            site.pass_over(obstacle.value)
            return
        with torch._C.DisableTorchFunction():  # who watches what tensors do does not see us
            (kept, is_narrow), dtype = snapshot_narrow(value), _type_of(value)
        entry = Entry(
            kind=site.kind,
            function=site.function,
            variable=site.variable,
            module_path=place.module_path,
            layer=layer,
            call=call,
            step=place.step,
            shape=getattr(kept, "shape", None),
            dtype=dtype if dtype is not None else _name_of_type(kept),
            type_name="ndarray" if isinstance(kept, Narrow) else type(kept).__name__,
            nbytes=nbytes(kept),
            read=Kept(kept, is_narrow),
        )
        with self._lock:
            self._append(site, entry)

    def _append(self, site: Site, entry: Entry) -> None:
        if self._sink is not None:
            site.entries.append(self._sink.put(entry))
            return
        before = site.entries[-1] if self._keep.last and site.entries else None
        freed = 0 if before is None else before.nbytes
        if not self._budget.has_room(entry.nbytes - freed):
            site.over_budget = f"call {entry.call} would have added {in_words(entry.nbytes)}"
            return
        if before is not None:
            self._budget.drop_bytes(before.nbytes)
            site.entries.clear()
        self._budget.add_bytes(entry.nbytes)
        site.entries.append(entry)


def is_second_time() -> bool:
    """Tell whether this is no call of the program's, but of the compiler or of a backward pass.

    Autograd runs a checkpointed part again, which does not count.
    """
    return find_obstacle() in (Obstacle.BACKWARD, Obstacle.COMPILER)


def _type_of(value: Any) -> str | None:
    """Return the type that a tensor had in the program, as "bfloat16"."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype).removeprefix("torch.")
    return None


def _name_of_type(kept: Any) -> str | None:
    found = getattr(kept, "dtype", None)
    return None if found is None else str(found)
