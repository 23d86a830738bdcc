"""Computing without being captured, and without what the user has switched on around us."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["is_unobserved", "unobserved"]


class _Depth(threading.local):
    value = 0


_depth = _Depth()
"""How many `unobserved` blocks this thread is in."""


class unobserved:  # noqa: N801  (used as a function, as contextlib's own context managers are)
    """Compute so that nothing captures it: no gradients, no autocast, no modes.

    Interceptors of attention calls ask `is_unobserved` and let such calls pass. Tensors made
    inside are ordinary ones, in inference mode too. Of this thread only; may be nested.

    Args:
        device: Type of the device that is computed on; autocast is switched off for it.

    Example:
        >>> with unobserved():
        ...     is_unobserved()
        True
    """

    __slots__ = ("_device", "_stack")

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._stack: ExitStack | None = None

    def __enter__(self) -> None:
        if not (_depth.value and _is_off(self._device)):
            self._switch_off()
        _depth.value += 1

    def _switch_off(self) -> None:
        self._stack = ExitStack()
        self._stack.enter_context(torch._C.DisableTorchFunction())  # first: modes see all the rest
        if torch.is_inference_mode_enabled():  # what is made there can't be written to elsewhere
            self._stack.enter_context(torch.inference_mode(False))
        self._stack.enter_context(torch.no_grad())
        if torch._C._len_torch_dispatch_stack():
            self._stack.enter_context(_disable_current_modes())
        if _autocasts(self._device):
            self._stack.enter_context(torch.autocast(self._device, enabled=False))

    def __exit__(self, *error: Any) -> None:
        _depth.value -= 1
        if self._stack is not None:
            self._stack.close()


def _is_off(device: str) -> bool:
    """Tell whether there is nothing to switch off, as in another block."""
    return not (
        torch._C._is_torch_function_enabled()
        or torch.is_grad_enabled()
        or torch.is_inference_mode_enabled()
        or torch._C._len_torch_dispatch_stack()
        or _autocasts(device)
    )


def _autocasts(device: str) -> bool:
    try:
        return torch.is_autocast_enabled(device)
    except RuntimeError:  # a device that has no autocast
        return False


def is_unobserved() -> bool:
    """Return whether this thread is inside `unobserved`."""
    return _depth.value > 0
