"""What an attention call returned to autograd, and the gradient that comes back for it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from visualizer._intercept.holding import Kept, keep
from visualizer.attention.unobserved import unobserved

__all__ = ["AwaitedGradient", "Returned"]


@dataclass(frozen=True, slots=True, eq=False)
class Returned:
    """What the gradient of a map can be computed from.

    Attributes:
        tensor: The program's own: the output, or the weights where these are all that is seen.
        arrange: Gives it, and its gradient, the axes `(batch, head, query, …)`.
        value: Shape `(batch, key_head, key, dim)`; None where the tensor is the weights.
        weights: The program's own, where the output was computed from them step by step.
        dropout: The probability with which weights were dropped between these and the output.
    """

    tensor: Tensor
    arrange: Callable[[Tensor], Tensor]
    value: Tensor | None = None
    weights: Tensor | None = None
    dropout: float = 0.0


class AwaitedGradient:
    """The gradient of a tensor of the program's, as the last backward pass brought it.

    Args:
        tensor: It has a graph, which does not keep this alive.
        arrange: Gives the gradient its axes.

    Attributes:
        error: What keeping it raised.
    """

    __slots__ = ("__weakref__", "_arrange", "_kept", "error")

    def __init__(self, tensor: Tensor, arrange: Callable[[Tensor], Tensor]) -> None:
        self._arrange = arrange
        self._kept: Kept | None = None
        self.error: Exception | None = None
        waiting = weakref.ref(self)

        def take(gradient: Tensor) -> None:
            found = waiting()
            if found is not None:
                found._take(gradient)

        tensor.register_hook(take)

    def _take(self, gradient: Tensor) -> None:
        """Keep a gradient; one from before is let go. Never raises into the backward pass."""
        self._kept = None
        try:
            with unobserved(gradient.device.type):
                self._kept = keep(self._arrange(gradient.detach()))
        except Exception as error:
            self.error = error.with_traceback(None)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return what is kept."""
        return () if self._kept is None else self._kept.tensors

    def read(self) -> Tensor | None:
        """Return the gradient; None where none has come yet.

        Raises:
            OverwrittenError: The program has written into it since.
        """
        return None if self._kept is None else self._kept.read()[0]
