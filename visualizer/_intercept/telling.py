"""Tell the open captures of an attention call, so that the program notices nothing of it."""

from __future__ import annotations

from typing import Any

from visualizer._capture.tensors import Obstacle, find_obstacle
from visualizer._intercept.observation import Observation
from visualizer._intercept.observers import Sighting, depth, find_observers

__all__ = ["refuse", "tell"]


def tell(sighting: Sighting) -> None:
    """Tell the observers of this context of an attention call that has returned.

    What they raise never reaches the program, but for `KeyboardInterrupt` and the like.
    """
    observers = find_observers()
    if not observers:
        return
    obstacle = find_obstacle()
    if obstacle is not None:
        if obstacle is not Obstacle.TRACE:
            return  # the compiler has no values, and a backward pass is a second time
        sighting = refuse("attention", obstacle.value, sighting.module)
    depth.told += 1
    for observer in observers:
        attention = observer.attention
        if attention is not None:
            try:
                attention.on_attention(sighting)
            except Exception as error:
                attention.on_error(error)


def refuse(source: str, reason: str, module: Any) -> Sighting:
    """Return the sighting of a call whose map can't be rebuilt."""
    seen = Observation(source=source, module=module, refusal=reason)
    return Sighting(lambda: seen, (), {}, module=module)
