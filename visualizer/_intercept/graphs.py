"""Graphs of torch.compile that hand attention over, beside those that the program has without us.

While a block is open, compiled functions have a cache of their own, told apart by the backend's
identity. So no graph that reads a stand-in is used outside of a block, and none of the program's
inside. They are also put into a region as that of `isolate_recompiles`, so that neither counts
for the other's limit of recompilations.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from visualizer._capture.eager_stance import ImportHook, eager_stance
from visualizer._intercept.calls import make_module_call
from visualizer._intercept.compiled_softmax import make_handlers, make_softmax_method
from visualizer._intercept.inductor import reading_copies
from visualizer._intercept.patches import patches

__all__ = ["OwnGraphs"]

_COMPILER = "torch._dynamo"
_CHOOSER = "_callback_from_stance"
_NEEDED = (
    _CHOOSER,
    "_next_isolate_recompiles_id",
    "_stance",
    "get_eval_frame_isolate_recompiles_id",
    "innermost_backend",
    "set_eval_frame_isolate_recompiles_id",
)
_regions: dict[int, int] = {}
"""Of ours, by the one that the program compiles in."""


class OwnGraphs:
    """What one capture has in place so that compiled functions get graphs of ours.

    Where torch is too old for that, or the program has set a stance, and may not want any graph to
    be made, they run as Python instead.
    """

    def __init__(self) -> None:
        self._waiting: ImportHook | None = None
        self._place: tuple[Any, str] | None = None

    def install(self) -> None:
        """Begin, now or when the compiler is imported."""
        if _COMPILER in sys.modules:
            self._begin()
        else:
            self._waiting = ImportHook(_COMPILER, self._on_import)
            self._waiting.install()

    def remove(self) -> list[str]:
        """End, and return what could not be put back."""
        self._stop_waiting()
        eager_stance.keep(False, owner=self)
        place, self._place = self._place, None
        trouble = None if place is None else patches.release(*place)
        return [] if trouble is None else [trouble]

    def _on_import(self) -> None:
        self._stop_waiting()
        self._begin()

    def _stop_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.remove()

    def _begin(self) -> None:
        frames = sys.modules[_COMPILER].eval_frame
        if _can_compile(frames):
            self._place = (frames, _CHOOSER)
            patches.acquire(*self._place, functools.partial(_make_chooser, frames))
        else:
            eager_stance.keep(True, owner=self)


def _can_compile(frames: ModuleType) -> bool:
    from torch._dynamo.variables import TensorVariable, TorchInGraphFunctionVariable

    return (
        all(hasattr(frames, name) for name in _NEEDED)
        and hasattr(TensorVariable, "call_method")
        and hasattr(TorchInGraphFunctionVariable, "_get_handlers")
        and frames._stance.stance == "default"
    )


@contextmanager
def _reading() -> Iterator[None]:
    """Replace what Dynamo does with some of the calls that it reads."""
    from torch._dynamo.variables import (
        TensorVariable,
        TorchInGraphFunctionVariable,
        UnspecializedNNModuleVariable,
    )

    places: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (TensorVariable, "method_softmax", make_softmax_method),
        (TorchInGraphFunctionVariable, "_get_handlers", make_handlers),
        (UnspecializedNNModuleVariable, "call_function", make_module_call),
    ]
    with ExitStack() as stack:
        for owner, name, make in places:
            patches.acquire(owner, name, make)
            stack.callback(patches.release, owner, name)
        yield


class _Backend:
    """What the compiler takes for the backend of graphs of ours; equal where theirs are."""

    __slots__ = ("theirs",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Backend) and bool(self.theirs == other.theirs)


class _Callback:
    """What the compiler calls when it has no graph: does as the program's own."""

    __slots__ = ("_callback", "_torchdynamo_orig_backend")

    def __init__(self, callback: Callable[..., Any], theirs: Any) -> None:
        self._callback, self._torchdynamo_orig_backend = callback, _Backend(theirs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _reading(), reading_copies():
            return self._callback(*args, **kwargs)


def _make_chooser(frames: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands in for what a compiled function asks when it is called."""

    def _callback_from_stance(*args: Any, **kwargs: Any) -> Any:
        callback = original(*args, **kwargs)
        if not callable(callback):  # it runs as Python, or with the graphs that there are
            return callback
        current = frames.get_eval_frame_isolate_recompiles_id()
        if current not in _regions:
            _regions[current] = next(frames._next_isolate_recompiles_id)
            _regions[_regions[current]] = _regions[current]
        frames.set_eval_frame_isolate_recompiles_id(_regions[current])  # the caller puts it back
        return _Callback(callback, frames.innermost_backend(callback))

    return _callback_from_stance
