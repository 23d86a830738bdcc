"""What is kept of one attention call, and whether it agrees with what the model computed."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from visualizer._block.attention_gradient import CallGradient
from visualizer._block.budget import storages
from visualizer._block.places import Place
from visualizer._intercept.observation import Held, Observation, QueryKeyObservation
from visualizer._intercept.observers import Sighting
from visualizer.attention import AttentionCall, OutputGradient
from visualizer.attention.rows import weights_of_rows
from visualizer.attention.unobserved import unobserved
from visualizer.errors import MapRefusedError, OverwrittenError

__all__ = ["AttentionRecord", "Versions"]


class Versions:
    """Tells whether the program writes into its tensors while a call waits to be settled.

    Args:
        sighting: The call.
    """

    __slots__ = ("_inputs", "_results", "_versions")

    def __init__(self, sighting: Sighting) -> None:
        self._inputs = (*sighting.tensors[:2], *sighting.parts)
        self._results = sighting.tensors[2:]
        self._versions = _versions(self._inputs), _versions(self._results)

    def find_changes(self) -> tuple[bool, bool]:
        """Return whether inputs of the map were written to, and whether values or output were."""
        inputs, results = self._versions
        return _versions(self._inputs) != inputs, _versions(self._results) != results


def _versions(tensors: Iterable[Tensor | None]) -> list[int | None]:
    return [None if tensor is None else tensor._version for tensor in tensors]


class AttentionRecord:
    """One attention call: a `MapRecord`.

    It begins with references to the program's own tensors, which costs next to nothing. `settle`
    makes of them what is kept: it copies what must be copied, and lets go of the values and the
    output.

    Attributes:
        shape: Sizes of batch, head, query, key.
        module_path: Of the module that called; None is outside of any.
        layer: Index of that module, in order of first appearance.
        call: Which attention call of that module it was.
        step: Which forward of the root model it was.
        source: What computed it.
        form: "qk", "rows" or "weights".
        gradient: What is kept for the gradient of the map.
    """

    __slots__ = (
        "_confirmed",
        "_excess",
        "_held",
        "_is_causal",
        "_is_compared",
        "_lock",
        "_observation",
        "_versions",
        "call",
        "form",
        "gradient",
        "layer",
        "module_path",
        "shape",
        "source",
        "step",
    )

    def __init__(
        self,
        observation: Observation,
        place: Place,
        *,
        layer: int | None,
        call: int,
        form: str,
        versions: Versions | None = None,
        gradient: CallGradient | None = None,
    ) -> None:
        self.shape, self.source, self.form = observation.shape, observation.source, form
        self.module_path, self.layer, self.call, self.step = (
            place.module_path,
            layer,
            call,
            place.step,
        )
        self.gradient = CallGradient() if gradient is None else gradient
        self._observation: Observation | None = observation
        self._versions = versions
        self._held: Held | None = None
        self._excess: Tensor | None = None
        self._confirmed: bool | None = None
        self._is_causal: bool | None = None
        self._is_compared = False
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """What messages call the map."""
        where = "outside of any module" if self.module_path is None else f"of {self.module_path!r}"
        return f"the attention map {where}, call {self.call}, of shape {self.shape}"

    @property
    def confirmed(self) -> bool | None:
        """Whether the map agrees with the model's output; None where that can't be told."""
        with self._lock:
            try:
                self.compare()
            except OverwrittenError:
                return None
            if self._excess is not None:
                excess, self._excess = float(self._excess), None
                self._confirmed = None if math.isnan(excess) else excess <= 1
            return self._confirmed

    @property
    def is_causal(self) -> bool | None:
        """Whether no query sees a key behind its place; None where the mask does not show it."""
        if self._is_causal is None:
            mask = self.settle().mask
            if mask is not None:
                self._is_causal = mask.is_causal(*self.shape[2:]) or None
        return self._is_causal

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything that is kept, for its bytes."""
        held, observation = self._held, self._observation
        if held is not None:
            return (*held.tensors, *self.gradient.tensors())
        return () if observation is None else (*observation.inputs(), *observation.results())

    def held(self) -> dict[Any, int]:
        """Return the bytes of what is kept, by place; what is shared has one."""
        return storages(self.tensors())

    def settle(self) -> Held:
        """Make of the program's tensors what is kept.

        Raises:
            OverwrittenError: The program wrote into them meanwhile.
        """
        with self._lock:
            if self._held is None:
                observation = self._observation
                assert observation is not None
                self._check_versions(observation)
                with unobserved(_device(observation)):
                    self._held = self._hold(observation)
                self._observation = None
            return self._held

    def read(self) -> AttentionCall | Tensor:
        """Return the call, or its weights.

        Raises:
            MapRefusedError: The map disagrees with what the model computed.
            OverwrittenError: The program wrote into what was kept.
        """
        found = self.settle().read()
        if self.confirmed is False:
            raise MapRefusedError(
                f"{self.name} can't be trusted: rows that were computed again from the kept "
                f"queries and keys disagree with what the model made of them (source: "
                f"{self.source!r}). Did something between model and kernel change query, key, mask "
                f"or scale? The model's eager attention may show what it is"
            )
        return found

    def read_gradient(self) -> OutputGradient | Tensor:
        """Return what the gradient of the map is computed from, or itself.

        Raises:
            NoGradientError: There is none.
            MapRefusedError, OverwrittenError: As for `read`.
        """
        self.read()  # a map that is refused has none
        return self.gradient.read(self.name)

    def _check_versions(self, observation: Observation) -> None:
        if self._versions is None:
            return
        inputs_changed, results_changed = self._versions.find_changes()
        if inputs_changed:
            raise OverwrittenError(
                f"the program has written into the queries, keys or mask of {self.name} since, so "
                f"that it can't be rebuilt. Read the map inside the block, before that, or capture "
                f"with keep='rows'"
            )
        if results_changed and isinstance(observation, QueryKeyObservation):
            observation.tensors = observation.tensors._replace(value=None, weights=None)
        self._versions = None

    def _hold(self, observation: Observation) -> Held:
        own = observation.own_weights()
        if own is not None and self.form == "weights":
            held = own.hold()
        else:
            held = observation.hold()
            if own is not None and self._is_refused(held):
                self._excess = None
                held = own.hold()  # the program has the map itself
        if self.form == "rows" or (self.form == "weights" and own is None):
            rows = _rows(held)
            self._compare(held, rows)
            if held.mask is not None and all(t.device.type == "cpu" for t in held.tensors):
                self._is_causal = held.mask.is_causal(*self.shape[2:]) or None
            held = Held(lambda: rows, (rows,), confirmed=held.confirmed)
        self._confirmed = held.confirmed
        return held

    def compare(self) -> None:
        """Hold the map against the model's output; on a GPU, without waiting for the result."""
        self._compare(self.settle())

    def _compare(self, held: Held, rows: Tensor | None = None) -> None:
        if held.check is None or self._is_compared:
            return
        self._is_compared = True
        found = held.read()
        if isinstance(found, AttentionCall):
            with unobserved(found.query.device.type):
                self._excess = held.check.excess(found, rows)

    def _is_refused(self, held: Held) -> bool:
        self._compare(held)
        excess = self._excess
        return excess is not None and excess.device.type == "cpu" and bool(excess > 1)


def _rows(held: Held) -> Tensor:
    """Compute the weights of all rows, apart from what they are computed from."""
    found = held.read()
    if isinstance(found, AttentionCall):
        return weights_of_rows(found, range(found.shape[2]))
    return found.clone()


def _device(observation: Observation) -> str:
    tensors = observation.inputs()
    return tensors[0].device.type if tensors else "cpu"
