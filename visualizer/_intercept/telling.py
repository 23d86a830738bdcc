"""Tell the open captures of an attention call, so that the program notices nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from visualizer._capture.tensors import Obstacle, find_obstacle
from visualizer._intercept.observation import Observation
from visualizer._intercept.observers import (
    AttentionObserver,
    Observer,
    Sighting,
    depth,
    find_observers,
)
from visualizer.attention.unobserved import unobserved

__all__ = ["is_graph_recorded", "refuse", "tell", "tell_errors"]


def tell(sighting: Sighting) -> None:
    """Tell the observers of this context of an attention call that has returned.

    What they raise never reaches the program, but for `KeyboardInterrupt` and the like.
    """
    observers = find_observers()
    if not observers:
        return
    obstacle = find_obstacle()
    if obstacle is Obstacle.COMPILER or _is_made_a_graph():
        return  # which has no values
    if obstacle is Obstacle.BACKWARD:
        _tell_again(observers, sighting)
        return
    depth.told += 1
    reason = _why_out_of_sight() if obstacle is None else obstacle.value
    if reason is not None:
        sighting = refuse("attention", reason, sighting.module)
    is_watched = reason is None and _is_watched(sighting)
    for observer in observers:
        attention = observer.attention
        if attention is None:
            continue
        try:
            if is_watched:
                with unobserved():
                    attention.on_attention(sighting)
            else:
                attention.on_attention(sighting)
        except Exception as error:
            attention.on_error(error)


def _tell_again(observers: Sequence[Observer], sighting: Sighting) -> None:
    """Tell observers that a checkpointed part makes a call a second time."""
    for observer in observers:
        attention = observer.attention
        if attention is not None:
            try:
                attention.on_recomputed(sighting)
            except Exception as error:
                attention.on_error(error)


@contextmanager
def tell_errors() -> Iterator[None]:
    """Keep an error of ours from the program; the observers of attention are told of it."""
    try:
        yield
    except Exception as error:
        for observer in find_observers():
            attention: AttentionObserver | None = observer.attention
            if attention is not None:
                attention.on_error(error)


def refuse(source: str, reason: str, module: Any) -> Sighting:
    """Return the sighting of a call whose map can't be rebuilt."""
    seen = Observation(source=source, module=module, refusal=reason)
    return Sighting(lambda: seen, (), {}, module=module)


def is_graph_recorded() -> bool:
    """Tell whether make_fx or torch.export makes a graph of what runs."""
    if torch.compiler.is_compiling():
        return True
    return bool(torch._C._len_torch_dispatch_stack()) and any(
        torch._C._get_dispatch_mode(mode) is not None
        for mode in (
            torch._C._TorchDispatchModeKey.PROXY,
            torch._C._TorchDispatchModeKey.FUNCTIONAL,
        )
    )


def _is_made_a_graph() -> bool:
    """Tell whether torch.compile makes a graph of what runs, which will hand over what it sees."""
    if torch._guards.TracingContext.try_get() is None:
        return False
    return is_graph_recorded() and not getattr(torch.compiler, "is_exporting", bool)()


def _why_out_of_sight() -> str | None:
    if is_graph_recorded():
        return (
            "make_fx or torch.export was recording it, and copies would become part of the graph; "
            "call the Python model itself"
        )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "it ran under torch.func (vmap, grad), where a tensor stands for others"
    return None


def _is_watched(sighting: Sighting) -> bool:
    """Tell whether somebody is told when a tensor is so much as looked at.

    By a mode (a default device, a counter of operations), or by the tensor's own type.
    """
    return bool(
        torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or any(type(tensor) not in _PLAIN for tensor in sighting.tensors)
    )


_MODES = torch._C._TorchDispatchModeKey
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, type(None)})
