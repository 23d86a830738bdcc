"""Attention calls: which are kept, in which form, and which can't be seen."""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from visualizer._block.attention_gradient import CallGradient
from visualizer._block.attention_record import AttentionRecord, Versions
from visualizer._block.budget import Budget, in_words
from visualizer._block.options import Keep
from visualizer._block.places import Place, Places
from visualizer._block.sink import ValueSink
from visualizer._intercept.checkpoints import Checkpoints
from visualizer._intercept.holding import is_cache, pins_more
from visualizer._intercept.install import AttentionPatches
from visualizer._intercept.observation import Observation, QueryKeyObservation
from visualizer._intercept.observers import Sighting
from visualizer.attention import AttentionMap
from visualizer.attention.unobserved import unobserved
from visualizer.errors import OverwrittenError

__all__ = ["AttentionSite", "AttentionTap"]

_SMALL = 2**18
"""Bytes of queries up to which a call may wait."""
_MOST_WAITING = 64 * 2**20
"""Bytes of all that wait in a block, and after it."""

_compared: set[Hashable] = set()
"""Kinds of small calls that were found to agree with the model's output, in this process."""
_MOST_COMPARED = 4096


@dataclass(slots=True, eq=False)
class AttentionSite:
    """A module that attends.

    Attributes:
        module_path: Its path; None is outside of any module.
        layer: Its index, in order of first appearance.
        calls: How many attention calls it made.
        maps: Those that are kept.
        compared: Kinds of calls of which the first was held against the output.
        refused: What is wrong with the first map that disagrees; the site stopped then.
        over_budget: The site stopped, since the capture's limit was reached.
    """

    module_path: str | None
    layer: int | None
    calls: int = 0
    maps: list[AttentionMap] = field(default_factory=list)
    compared: set[Hashable] = field(default_factory=set)
    refused: str | None = None
    over_budget: str | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return "attention outside of modules" if self.module_path is None else self.module_path


class _Waiting(NamedTuple):
    """A small call that nobody has looked at yet."""

    sighting: Sighting
    place: Place
    versions: Versions | None


class _Seen(NamedTuple):
    """A call that was looked at."""

    observation: Observation
    place: Place
    versions: Versions | None
    kind: Hashable
    may_be_rows: bool


class AttentionTap:
    """Records attention calls.

    Small ones wait, as references to the program's tensors, until somebody reads the capture or
    until they are many: so a short forward is hardly longer.

    Attributes:
        unseen: How often attention was noticed that can't be captured, by place and reason.
        foreign: How many calls were not the model's.
        error: The first error that recording raised.
        gradients: Whether they are wanted.
    """

    def __init__(
        self,
        places: Places,
        keep: Keep,
        budget: Budget,
        *,
        gradients: bool = False,
        sink: ValueSink | None = None,
    ) -> None:
        self._places, self._keep, self._budget, self._sink = places, keep, budget, sink
        self.gradients = gradients
        self._maps: list[AttentionMap] = []
        self._sites: dict[tuple[int, str | None], AttentionSite] = {}
        self.unseen: dict[tuple[str, str], int] = {}
        self.foreign = 0
        self.error: Exception | None = None
        self._waiting: list[_Waiting] = []
        self._bytes_waiting = 0
        self._let_wait = keep.form in ("auto", "qk") and budget.max_bytes is None
        self._checkpoints: Checkpoints[AttentionRecord] = Checkpoints()
        self._compared_on_device: list[tuple[AttentionSite, AttentionRecord]] = []
        self._patches = AttentionPatches()
        self._lock = threading.RLock()

    @property
    def maps(self) -> list[AttentionMap]:
        """All maps that are kept, in the order of the calls."""
        self.catch_up()
        return self._maps

    @property
    def records(self) -> list[AttentionRecord]:
        """What the maps are made from."""
        return [_record_of(made) for made in self.maps]

    @property
    def sites(self) -> list[AttentionSite]:
        """The modules that attended, in order of first appearance."""
        self.catch_up()
        return self.sites_so_far()

    def sites_so_far(self) -> list[AttentionSite]:
        """Return the modules of which a call was looked at."""
        return list(self._sites.values())

    def on_error(self, error: Exception) -> None:
        """Note what recording raised."""
        self.error = self.error or error.with_traceback(None)

    def install(self) -> None:
        """Begin to see attention."""
        self._patches.install()

    def remove(self) -> list[str]:
        """See it no more, and return what could not be put back.

        What is new among the waiting is held against the output.
        """
        troubles = self._patches.remove()
        if self._waiting and self._has_new():
            self.catch_up()
        for site, record in self._compared_on_device:
            if record.confirmed is False and site.refused is None:
                site.refused = record.name
        self._compared_on_device.clear()
        return troubles

    def _has_new(self) -> bool:
        """Tell whether calls wait of a kind that was never held against the output."""
        with unobserved():
            try:
                return any(each.sighting.kind not in _compared for each in self._waiting)
            except Exception:  # a tensor type of somebody's own
                return True

    def on_attention(self, sighting: Sighting) -> None:
        """Keep what was seen, if that is wanted, possible and allowed."""
        place = self._places.find(sys._getframe(1), sighting.module, sighting.inlined)
        if place is None:
            self.foreign += 1
        elif self.gradients:
            self._look_with_gradient(_Waiting(sighting, place, None))
        elif not (self._let_wait and _can_wait(sighting)):
            self.catch_up(as_smallest=_is_decoding(sighting))  # calls stay in their order
            self._look(_Waiting(sighting, place, None), settle=True)
        else:
            self._let_it_wait(sighting, place)

    def _let_it_wait(self, sighting: Sighting, place: Place) -> None:
        with self._lock:
            self._waiting.append(_Waiting(sighting, place, Versions(sighting)))
            self._bytes_waiting += 4 * sighting.tensors[0].nbytes  # type: ignore[union-attr]
        if self._bytes_waiting > _MOST_WAITING:
            self.catch_up(settle=True)

    def _look_with_gradient(self, call: _Waiting) -> None:
        """Keep a call that may be made again with autograd, in a backward pass."""
        record = None
        try:
            record = self._look(call, settle=True)
        finally:
            if self._checkpoints.note(record) and record is not None:
                record.gradient.await_checkpoint()

    def on_recomputed(self, sighting: Sighting) -> None:
        """Await the gradient of a call that is made again, with autograd."""
        record = self._checkpoints.find() if self.gradients else None
        if record is not None:
            observation = sighting.look()
            if observation.shape == record.shape:
                record.gradient.start(observation)

    def catch_up(self, *, settle: bool = False, as_smallest: bool = False) -> None:
        """Look at the calls that wait.

        Args:
            settle: Also let go of the program's tensors, as far as they are not kept.
            as_smallest: That, and compute rows where these are smaller.
        """
        if not self._waiting:
            return
        with self._lock, unobserved():
            waiting, self._waiting, self._bytes_waiting = self._waiting, [], 0
            for each in waiting:
                try:
                    self._look(each, settle=settle or as_smallest, as_smallest=as_smallest)
                except OverwrittenError:
                    pass  # reading the map says so
                except Exception as error:
                    self.on_error(error)

    def _look(
        self, waiting: _Waiting, *, settle: bool, as_smallest: bool = False
    ) -> AttentionRecord | None:
        """Look at a call, and return what is kept of it."""
        sighting = waiting.sighting
        observation, place = sighting.look(), waiting.place
        observation.module = None  # it need not live as long as the map
        reason = observation.why_no_value()
        if reason is not None:
            key = ("attention" if place.module_path is None else place.module_path, reason)
            self.unseen[key] = self.unseen.get(key, 0) + 1
            return None
        may_be_rows = as_smallest or waiting.versions is None
        seen = _Seen(observation, place, waiting.versions, sighting.kind, may_be_rows)
        with self._lock:
            site = self._site(place)
            call = site.calls
            site.calls += 1
            if site.refused is None and site.over_budget is None and self._keep.wants(call):
                return self._take(site, call, seen, settle=settle)
        return None

    def _site(self, place: Place) -> AttentionSite:
        key = (place.root, place.module_path)
        site = self._sites.get(key)
        if site is None:
            known = sum(1 for _, path in self._sites if path is not None)
            layer = None if place.module_path is None else known
            site = self._sites[key] = AttentionSite(place.module_path, layer)
        return site

    def _take(
        self, site: AttentionSite, call: int, seen: _Seen, *, settle: bool
    ) -> AttentionRecord:
        record = AttentionRecord(
            seen.observation,
            seen.place,
            layer=site.layer,
            call=call,
            form=self._form(seen),
            versions=seen.versions,
            gradient=CallGradient.of(seen.observation) if self.gradients else None,
        )
        try:
            if seen.kind in _compared:
                if settle:
                    record.settle()
            else:
                self._settle_and_compare(site, record, seen)
        finally:
            self._append(site, record)
        return record

    def _form(self, seen: _Seen) -> str:
        """Return which form is asked for, or which of queries and keys and rows is smaller."""
        if self._keep.form != "auto":
            return self._keep.form
        if not seen.may_be_rows:
            return "qk"
        observation = seen.observation
        size, rows = observation.nbytes()
        masked = isinstance(observation, QueryKeyObservation) and observation.mask.tensors()
        if masked and isinstance(observation, QueryKeyObservation) and size <= rows:
            size += self._budget.new_bytes(observation.mask.tensors())
        return "rows" if rows < size else "qk"

    def _settle_and_compare(
        self, site: AttentionSite, record: AttentionRecord, seen: _Seen
    ) -> None:
        """Settle a call; the first of its kind is held against the output at once."""
        held = record.settle()
        if seen.kind in site.compared:
            return
        site.compared.add(seen.kind)
        if any(tensor.device.type != "cpu" for tensor in held.tensors):
            record.compare()  # the device is not waited for; the end of the block is
            self._compared_on_device.append((site, record))
            return
        confirmed = record.confirmed
        if confirmed is False:
            site.refused = record.name
        elif confirmed and seen.versions is not None and len(_compared) < _MOST_COMPARED:
            _compared.add(seen.kind)

    def _append(self, site: AttentionSite, record: AttentionRecord) -> None:
        if self._sink is not None:
            made = AttentionMap(record)
            self._sink.put_map(made, list(self._sites.values()).index(site))
            site.maps.append(made)
            self._maps.append(made)
            return
        before = site.maps[-1] if self._keep.last and site.maps else None
        if self._budget.max_bytes is not None:
            size = self._budget.new_bytes(record.tensors()) + record.gradient.expected_bytes
            freed = 0 if before is None else self._budget.own_bytes(_record_of(before))
            if not self._budget.has_room(size - freed):
                site.over_budget = (
                    f"call {record.call}, a map of shape {record.shape}, would have added "
                    f"{in_words(size)}"
                )
                return
        if before is not None:
            self._drop(site, before)
        self._budget.add_record(record, record.gradient.expected_bytes)
        made = AttentionMap(record)
        site.maps.append(made)
        self._maps.append(made)

    def _drop(self, site: AttentionSite, before: AttentionMap) -> None:
        record = _record_of(before)
        self._budget.drop_record(record)
        site.maps.clear()
        self._maps.remove(before)


def _record_of(made: AttentionMap) -> AttentionRecord:
    assert isinstance(made.record, AttentionRecord)
    return made.record


def _is_decoding(sighting: Sighting) -> bool:
    """Tell whether a call is a decoder's that goes on: what it read before need wait no longer."""
    query, key = sighting.tensors[:2] if len(sighting.tensors) > 1 else (None, None)
    return query is not None and key is not None and query.shape[-2] == 1 < key.shape[-2]


def _can_wait(sighting: Sighting) -> bool:
    """Tell whether a call may wait: it is small, and nothing is lost by it.

    Tensors with a graph would keep that alive, and parts of larger ones those. Tensors of inference
    mode don't tell when they are written to. A decoder's keys, more than its queries, would keep
    its cache, and those of a static one are written to by the next step. What a compiled graph
    lends is overwritten at once.
    """
    if sighting.is_borrowed or len(sighting.tensors) < 4:
        return False
    query, key, value, output = sighting.tensors[:4]
    if query is None or key is None or value is None or output is None:
        return False
    if not key.nbytes <= query.nbytes <= _SMALL or is_cache(query, key):
        return False
    if any(tensor is not None and tensor.nbytes > _SMALL for tensor in sighting.tensors[4:]):
        return False
    if output.requires_grad or any(t.is_inference() for t in (query, key, value, output)):
        return False
    if any(part is not None and part.is_inference() for part in sighting.parts):
        return False
    return not any(pins_more(tensor) for tensor in (query, key, *sighting.parts))
