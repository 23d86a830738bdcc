"""See modules called, without hooks.

A hook on a module switches torch.nn's fused layers off, which changes the output. So it is the
`__call__` of the module's class that is replaced. What comes out is what the caller gets, after all
hooks.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from visualizer._intercept.observers import Observer, find_observers
from visualizer._intercept.patches import patches

__all__ = ["make_module_call", "unwatch_calls", "watch_calls"]


def watch_calls(cls: type) -> None:
    """Tell observers when an instance of a class, or of one derived from it, is called."""
    patches.acquire(cls, "__call__", lambda original: _make_call(cls, original))


def unwatch_calls(cls: type) -> str | None:
    """Put the class's own `__call__` back, unless others need it; return what went wrong."""
    return patches.release(cls, "__call__")


def _make_call(cls: type, original: Callable[..., Any]) -> Callable[..., Any]:
    is_own = "__call__" in vars(cls)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if torch.compiler.is_dynamo_compiling():  # a graph can't tell that it calls a module
            return original(self, *args, **kwargs)
        # Looked up anew where it is inherited: a tracer may have replaced it meanwhile.
        proceed = original.__get__(self) if is_own else cast(Any, super(cls, self)).__call__
        observers = find_observers()
        # Where a derived class is watched, too, that one tells.
        if not observers or type(self).__call__ is not __call__:
            return proceed(*args, **kwargs)
        _tell(observers, "on_call", self, args, kwargs)
        try:
            output = proceed(*args, **kwargs)
        except BaseException:
            _tell(observers, "on_raise", self)
            raise
        _tell(observers, "on_return", self, output)
        return output

    if original is nn.Module.__call__ or original in _plain:
        _plain.add(__call__)
    return __call__


_plain: weakref.WeakSet[Any] = weakref.WeakSet()
"""What stands in for torch's own `Module.__call__`."""


def make_module_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what Dynamo does where a module is called: it does not look at what stands in.

    A graph made by looking at it would not do for a block that watches other classes.
    """

    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        if inspect.getattr_static(type(self.value), "__call__", None) in _plain:
            return self.call_method(tx, "_call_impl", list(args), kwargs)
        return original(self, tx, args, kwargs)

    return call_function


def _tell(observers: tuple[Observer, ...], event: str, *facts: Any) -> None:
    """Tell observers; what they raise never reaches the program."""
    for observer in observers:
        try:
            getattr(observer, event)(*facts)
        except Exception as error:
            observer.on_error(error)
