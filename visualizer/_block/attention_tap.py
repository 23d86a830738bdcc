"""Attention calls: which are kept, in which form, and which can't be seen."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from typing import Any

from visualizer._block.attention_record import AttentionRecord
from visualizer._block.budget import Budget, in_words
from visualizer._block.options import Keep
from visualizer._block.places import Place, Places
from visualizer._intercept.install import AttentionPatches, attention_functions
from visualizer._intercept.observation import (
    Observation,
    QueryKeyObservation,
    WeightsObservation,
)
from visualizer.attention import AttentionMap

__all__ = ["AttentionSite", "AttentionTap"]


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
        takes_weights: The program's own weights are kept, since queries and keys don't explain
            them.
    """

    module_path: str | None
    layer: int | None
    calls: int = 0
    maps: list[AttentionMap] = field(default_factory=list)
    compared: set[Any] = field(default_factory=set)
    refused: str | None = None
    over_budget: str | None = None
    takes_weights: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return "attention outside of modules" if self.module_path is None else self.module_path


class AttentionTap:
    """Records attention calls.

    Attributes:
        maps: All that are kept, in the order of the calls.
        sites: By module path.
        unseen: How often attention was noticed that can't be captured, by place and reason.
        foreign: How many calls were not the model's.
        error: The first error that recording raised.
    """

    def __init__(self, places: Places, keep: Keep, budget: Budget) -> None:
        self._places, self._keep, self._budget = places, keep, budget
        self.maps: list[AttentionMap] = []
        self.sites: dict[str | None, AttentionSite] = {}
        self.unseen: dict[tuple[str, str], int] = {}
        self.foreign = 0
        self.error: Exception | None = None
        self._patches = AttentionPatches()
        self._lock = threading.RLock()

    def install(self) -> None:
        """Begin to see attention; note what is kept where it can't be replaced."""
        functions = attention_functions()
        for path, module in self._places.paths().items():
            for name, value in vars(module).items():
                if id(value) in functions:
                    reason = f"it keeps {functions[id(value)]} in its attribute {name!r}"
                    self.unseen[path, reason] = 0
        self._patches.install()

    def remove(self) -> None:
        """See it no more, and compare what waits for it."""
        self._patches.remove()

    def on_attention(self, observation: Observation) -> None:
        """Keep what was seen, if that is wanted, possible and allowed."""
        place = self._places.find(sys._getframe(1), observation.module)
        if place is None:
            self.foreign += 1
            return
        reason = observation.why_no_value()
        if reason is not None:
            key = ("attention" if place.module_path is None else place.module_path, reason)
            self.unseen[key] = self.unseen.get(key, 0) + 1
            return
        with self._lock:
            site = self._site(place)
            call = site.calls
            site.calls += 1
        if site.refused is None and site.over_budget is None and self._keep.wants(call):
            self._take(site, place, call, observation)

    def _site(self, place: Place) -> AttentionSite:
        path = place.module_path
        site = self.sites.get(path)
        if site is None:
            known = sum(1 for other in self.sites if other is not None)
            site = AttentionSite(path, None if path is None else known)
            self.sites[path] = site
        return site

    def _take(self, site: AttentionSite, place: Place, call: int, observation: Observation) -> None:
        form = self._form(observation)
        if form == "weights" or site.takes_weights:
            observation = _own_weights(observation)
        record = self._record(site, place, call, observation)
        if self._is_first(site, observation, record) and record.confirmed is False:
            if isinstance(observation, QueryKeyObservation) and observation.weights is not None:
                site.takes_weights = True
                record = self._record(site, place, call, _own_weights(observation))
            else:
                site.refused = record.name
        if form == "rows" or (form == "weights" and isinstance(observation, QueryKeyObservation)):
            record.to_rows()
        self._append(site, record)

    def _record(
        self, site: AttentionSite, place: Place, call: int, observation: Observation
    ) -> AttentionRecord:
        return AttentionRecord(
            observation,
            observation.hold(),
            module_path=site.module_path,
            layer=site.layer,
            call=call,
            step=place.step,
        )

    def _is_first(
        self, site: AttentionSite, observation: Observation, record: AttentionRecord
    ) -> bool:
        """Tell whether nothing like this was compared before; on a GPU nothing waits for it."""
        if not isinstance(observation, QueryKeyObservation) or observation.query.is_cuda:
            return False
        kind = (observation.shape, observation.source, observation.mask.kind)
        if kind in site.compared:
            return False
        site.compared.add(kind)
        return True

    def _form(self, observation: Observation) -> str:
        if self._keep.form != "auto":
            return self._keep.form
        inputs, rows = observation.nbytes()
        if rows < inputs:
            return "rows"
        if isinstance(observation, QueryKeyObservation):
            added = self._budget.new_bytes(observation.mask.tensors())
            return "rows" if rows < inputs + added else "qk"
        return "qk"

    def _append(self, site: AttentionSite, record: AttentionRecord) -> None:
        with self._lock:
            size = self._budget.new_bytes(record.tensors())
            before = site.maps[-1] if self._keep.last and site.maps else None
            if before is not None:
                self._drop(site, before)
            if not self._budget.has_room(size):
                site.over_budget = (
                    f"call {record.call}, a map of shape {record.shape}, would have added "
                    f"{in_words(size)}"
                )
                return
            self._budget.add_tensors(record.tensors())
            made = AttentionMap(record)
            site.maps.append(made)
            self.maps.append(made)

    def _drop(self, site: AttentionSite, before: AttentionMap) -> None:
        record = before.record
        assert isinstance(record, AttentionRecord)
        self._budget.drop_tensors(record.tensors())
        site.maps.clear()
        self.maps.remove(before)


def _own_weights(observation: Observation) -> Observation:
    """Return the observation of the map that the program itself computed, if it did."""
    weights = getattr(observation, "weights", None)
    if not isinstance(observation, QueryKeyObservation) or weights is None:
        return observation
    return WeightsObservation(
        source=observation.source,
        shape=observation.shape,
        module=observation.module,
        weights=weights,
        confirmed=True,
    )
