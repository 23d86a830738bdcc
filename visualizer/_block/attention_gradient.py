"""The gradient of one attention call: awaited, or why there is none."""

from __future__ import annotations

import torch
from torch import Tensor

from visualizer._intercept.check import OutputCheck
from visualizer._intercept.holding import Kept, hold
from visualizer._intercept.observation import Observation
from visualizer._intercept.returned import AwaitedGradient, Returned
from visualizer.attention import OutputGradient
from visualizer.attention.unobserved import unobserved
from visualizer.errors import NoGradientError

__all__ = ["CallGradient"]

NOT_ASKED = "it was captured without: capture(model, gradients=True)"
_NO_GRAPH = (
    "the model ran without autograd: under torch.no_grad() or inference_mode(), or with neither "
    "parameters nor inputs that require gradients. Run it with gradients, and then call "
    ".backward() on what is to be explained, such as logits[0, 3].backward()"
)
_NOT_YET = (
    "no backward pass has reached it. Call .backward() on a number that depends on it, such as "
    "logits[0, 3].backward()"
)
_CHECKPOINT = (
    "its checkpoint ran the model without autograd first, and no backward pass has run it again "
    "inside the block. Call .backward() inside the block, or checkpoint with use_reentrant=False"
)
_DROPOUT = (
    "dropout acted between the weights and the output, and which ones it dropped is not known; "
    "model.eval() turns it off"
)
_NO_PRODUCT = (
    "what the call returned is not its weights times its values: something was done to either "
    "on the way"
)
_UNSEEN = "the call shows nothing that a gradient comes back for"


class CallGradient:
    """What is kept for the gradient of one call.

    Args:
        reason: Why there is none; "" where it may come.

    Attributes:
        expected_bytes: What the gradient will take once it comes.
    """

    __slots__ = ("_awaited", "_excess", "_reason", "_value", "expected_bytes")

    def __init__(self, reason: str = NOT_ASKED) -> None:
        self._reason = reason
        self._awaited: AwaitedGradient | None = None
        self._value: Kept | None = None
        self._excess: Tensor | None = None
        self.expected_bytes = 0

    @classmethod
    def of(cls, observation: Observation) -> CallGradient:
        """Await the gradient of a call that has just returned."""
        made = cls()
        made.start(observation)
        return made

    def start(self, observation: Observation) -> None:
        """Await the gradient of what was returned, if there is a way to it."""
        found = observation.returned()
        self._reason = _why_none(found)
        if found is None or self._reason:
            return
        with unobserved(found.tensor.device.type):
            if found.value is not None:
                is_cache = observation.shape[3] > observation.shape[2]
                self._value = Kept(hold(found.value, copy=is_cache))
                self._excess = _compare(found)
        self._awaited = AwaitedGradient(found.tensor, found.arrange)
        self.expected_bytes = found.tensor.nbytes

    def await_checkpoint(self) -> None:
        """Note that a backward pass will make the call again, with autograd."""
        if self._reason == _NO_GRAPH:
            self._reason = _CHECKPOINT

    def tensors(self) -> tuple[Tensor, ...]:
        """Return what is kept, for its bytes."""
        values = () if self._value is None else self._value.tensors
        return values if self._awaited is None else (*values, *self._awaited.tensors())

    def why_none(self) -> str:
        """Say why there is no gradient; "" where there is one."""
        if self._excess is not None and not self._reason and bool(self._excess > 1):
            self._reason = _NO_PRODUCT
        if self._reason or self._awaited is None:
            return self._reason
        error = self._awaited.error
        if error is not None:
            return f"keeping it raised {type(error).__name__}: {error}"
        return "" if self._awaited.tensors() else _NOT_YET

    def read(self, name: str) -> OutputGradient | Tensor:
        """Return what the gradient is computed from, or itself.

        Args:
            name: What messages call the map.
        Raises:
            NoGradientError: There is none.
            OverwrittenError: The program has written into what is kept.
        """
        gradient = None if self._awaited is None else self._awaited.read()
        reason = self.why_none()
        if gradient is None or reason:
            raise NoGradientError(f"{name} has no gradient: {reason}")
        return gradient if self._value is None else OutputGradient(gradient, *self._value.read())


def _why_none(found: Returned | None) -> str:
    if found is None:
        return _NO_GRAPH if not torch.is_grad_enabled() else _UNSEEN
    if not found.tensor.requires_grad:
        return _NO_GRAPH
    return _DROPOUT if found.dropout > 0 else ""


def _compare(found: Returned) -> Tensor | None:
    """Hold the output against weights and values, where the program computed it from these."""
    if found.weights is None or found.value is None or 0 in found.tensor.shape:
        return None
    check = OutputCheck.of(found.value, found.arrange(found.tensor))
    return check.excess_of(found.weights.detach())
