"""What is kept of one attention call, and whether it agrees with what the model computed."""

from __future__ import annotations

import math
import threading

from torch import Tensor

from visualizer._intercept.check import Check
from visualizer._intercept.observation import Held, Observation
from visualizer.attention import AttentionCall
from visualizer.attention.rows import weights_of_rows
from visualizer.attention.unobserved import unobserved
from visualizer.errors import MapRefusedError, OverwrittenError

__all__ = ["AttentionRecord"]


class AttentionRecord:
    """One attention call: a `MapRecord`.

    Attributes:
        shape: Sizes of batch, head, query, key.
        module_path: Of the module that called; None is outside of any.
        layer: Index of that module, in order of first appearance.
        call: Which attention call of that module it was.
        step: Which forward of the root model it was.
        source: What computed it.
    """

    __slots__ = (
        "_check",
        "_confirmed",
        "_excess",
        "_held",
        "_is_causal",
        "_lock",
        "call",
        "layer",
        "module_path",
        "shape",
        "source",
        "step",
    )

    def __init__(
        self,
        observation: Observation,
        held: Held,
        *,
        module_path: str | None,
        layer: int | None,
        call: int,
        step: int | None,
    ) -> None:
        self.shape, self.source = observation.shape, observation.source
        self.module_path, self.layer, self.call, self.step = module_path, layer, call, step
        self._held = held
        self._check: Check | None = held.check
        self._excess: Tensor | None = None
        self._confirmed = held.confirmed
        self._is_causal: bool | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """What messages call the map."""
        where = "outside of any module" if self.module_path is None else f"of {self.module_path!r}"
        return f"the attention map {where}, call {self.call}, of shape {self.shape}"

    @property
    def confirmed(self) -> bool | None:
        """Whether the map agrees with the model's output; None where that can't be told."""
        with self._lock:
            self._decide()
            return self._confirmed

    @property
    def is_causal(self) -> bool | None:
        """Whether no query sees a key behind its place; None where the mask does not show it."""
        if self._is_causal is None and self._held.mask is not None:
            self._is_causal = self._held.mask.is_causal(*self.shape[2:]) or None
        return self._is_causal

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything that is kept, for its bytes."""
        return self._held.tensors

    def read(self) -> AttentionCall | Tensor:
        """Return the call, or its weights.

        Raises:
            MapRefusedError: The map disagrees with what the model computed.
            OverwrittenError: The program wrote into what was kept.
        """
        found = self._held.read()
        if self.confirmed is False:
            raise MapRefusedError(
                f"{self.name} can't be trusted: rows that were computed again from the kept "
                f"queries and keys disagree with what the model made of them (source: "
                f"{self.source!r}). Did something between model and kernel change query, key, mask "
                f"or scale? Capture with the model's eager attention, or keep='weights'"
            )
        return found

    def compare(self) -> None:
        """Hold the map against the model's output; on a GPU, without waiting for the result."""
        check, self._check = self._check, None
        if check is None:
            return
        found = self._held.read()
        if isinstance(found, AttentionCall):
            with unobserved(found.query.device.type):
                self._excess = check.excess(found)

    def to_rows(self) -> None:
        """Compute the weights now, and let go of what they are computed from."""
        self.compare()
        call = self._held.read()
        if isinstance(call, AttentionCall):
            call = weights_of_rows(call, range(self.shape[2]))
        else:
            call = call.clone()
        rows = call
        self._held = Held(read=lambda: rows, tensors=(rows,), mask=self._held.mask)

    def _decide(self) -> None:
        if self._check is not None:
            try:
                self.compare()
            except OverwrittenError:
                self._check = None
        excess, self._excess = self._excess, None
        if excess is not None:
            value = float(excess)
            self._confirmed = None if math.isnan(value) else value <= 1
