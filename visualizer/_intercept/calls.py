"""See modules called, without hooks.

A hook on a module switches torch.nn's fused layers off, which changes the output. So it is the
`__call__` of the module's class that is replaced. What comes out is what the caller gets, after all
hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from visualizer._intercept.observers import find_observers
from visualizer._intercept.patches import patches

__all__ = ["unwatch_calls", "watch_calls"]


def watch_calls(cls: type) -> None:
    """Tell observers when an instance of a class, or of one derived from it, is called."""
    patches.acquire(cls, "__call__", lambda original: _make_call(cls, original))


def unwatch_calls(cls: type) -> None:
    """Put the class's own `__call__` back, unless others need it."""
    patches.release(cls, "__call__")


def _make_call(cls: type, original: Callable[..., Any]) -> Callable[..., Any]:
    is_own = "__call__" in vars(cls)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        # Looked up anew where it is inherited: a tracer may have replaced it meanwhile.
        proceed = original.__get__(self) if is_own else cast(Any, super(cls, self)).__call__
        if type(self).__call__ is not __call__:  # a derived class is watched, too, and has told
            return proceed(*args, **kwargs)
        observers = find_observers()
        for observer in observers:
            observer.on_call(self, args, kwargs)
        output = proceed(*args, **kwargs)
        for observer in observers:
            observer.on_return(self, output)
        return output

    return __call__
