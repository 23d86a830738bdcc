"""Tell the open captures of an attention call, so that the program notices nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from visualizer._capture.tensors import Obstacle, find_obstacle
from visualizer._intercept.observation import Observation
from visualizer._intercept.observers import Observer, find_observers, note_told
from visualizer.attention.unobserved import unobserved

__all__ = ["tell"]


def tell(observe: Callable[[], Observation]) -> None:
    """Tell the observers of this context.

    What they and `observe` raise never reaches the program, but for `KeyboardInterrupt` and the
    like.
    """
    observers = find_observers()
    if not observers:
        return
    obstacle = find_obstacle()
    if obstacle in (Obstacle.COMPILER, Obstacle.BACKWARD):
        return  # the one has no values, the other is a second time
    note_told()
    if obstacle is not None:
        _tell_all(observers, Observation(source="attention", refusal=obstacle.value))
        return
    with unobserved():
        try:
            observation = observe()
        except Exception as error:
            for observer in observers:
                observer.on_error(error)
            return
        _tell_all(observers, observation)


def _tell_all(observers: Sequence[Observer], observation: Observation) -> None:
    for observer in observers:
        try:
            observer.on_attention(observation)
        except Exception as error:
            observer.on_error(error)
