"""Find the Python function behind a target."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from visualizer.errors import NotInstrumentableError, TargetNotFoundError

__all__ = ["Target", "describe", "resolve"]


@dataclass(frozen=True, slots=True)
class Target:
    """A resolved target.

    Attributes:
        function: The innermost function, whose code does the work.
        wrappers: The Python functions around it, outermost first.
    """

    function: types.FunctionType
    wrappers: tuple[types.FunctionType, ...]


def resolve(target: object) -> Target:
    """Find the innermost Python function of a target.

    Args:
        target: A function, a method, what a class attribute holds (staticmethod, classmethod,
            property, `functools.partial` and its like), or `"package.module:Qual.name"`.
    Raises:
        TargetNotFoundError: The string does not resolve; the message says which part.
        NotInstrumentableError: There is no Python function; the message says what there is.
    """
    found = _look_up(target) if isinstance(target, str) else target
    layers = list(_layers(found))
    innermost = layers[-1]
    if not isinstance(innermost, types.FunctionType):
        raise NotInstrumentableError(_explain(found, innermost))
    wrappers = tuple(layer for layer in layers[:-1] if isinstance(layer, types.FunctionType))
    return Target(innermost, wrappers)


def describe(value: object) -> str:
    """Say in a few words what a target is, for messages."""
    for kinds, words in _KINDS:
        if isinstance(value, kinds):
            return words
    module = type(value).__module__.partition(".")[0]
    name = type(value).__qualname__
    if module == "torch" and name in {"ScriptFunction", "ScriptMethod", "RecursiveScriptModule"}:
        return "a torch.jit function, which runs compiled and not as Python"
    if "cython" in name or "cyfunction" in name:
        return "a function compiled by Cython"
    if module == "numpy" and name == "ufunc":
        return "a numpy ufunc, written in C"
    return f"an object of type {type(value).__module__}.{name}"


_MOST_LAYERS = 100
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (type, "a class"),
    (
        (types.BuiltinFunctionType, types.MethodWrapperType),
        "a builtin or a function of a C extension",
    ),
    (
        (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType),
        "a method written in C",
    ),
    ((types.GetSetDescriptorType, types.MemberDescriptorType), "an attribute kept in C"),
    (types.ModuleType, "a module"),
    (types.CodeType, "a code object"),
    ((types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType), "a running generator"),
)


def _layers(found: object) -> Iterator[object]:
    """Yield a target and what it wraps, down to the innermost."""
    seen: list[object] = []
    while len(seen) < _MOST_LAYERS:  # an object may answer anything to being asked for __wrapped__
        yield found
        seen.append(found)
        inner = _unwrap_once(found)
        if inner is None or any(inner is layer for layer in seen):
            return
        found = inner


def _unwrap_once(found: object) -> object | None:
    if isinstance(found, type):
        return None
    if isinstance(found, (types.MethodType, staticmethod, classmethod)):
        return found.__func__
    if isinstance(found, property):
        return found.fget
    if isinstance(found, (functools.partial, functools.partialmethod, functools.cached_property)):
        return found.func
    wrapped: object | None = getattr(found, "__wrapped__", None)
    return wrapped


def _explain(found: object, innermost: object) -> str:
    name = getattr(found, "__qualname__", None) or repr(found)
    what = describe(innermost)
    if isinstance(innermost, type):
        methods = [
            method
            for method, value in vars(innermost).items()
            if isinstance(value, types.FunctionType) and not method.startswith("__")
        ]
        if "forward" in methods:
            methods = ["forward"]
        choice = methods[0] if methods else "<method>"
        advice = (
            f"take the method that has the local, for example {innermost.__qualname__}.{choice}"
        )
    elif callable(innermost) and isinstance(
        inspect.getattr_static(type(innermost), "__call__", None), types.FunctionType
    ):
        inner = "forward" if hasattr(type(innermost), "forward") else "__call__"
        advice = f"its code is in {type(innermost).__qualname__}.{inner}: take that"
    elif "torch.jit" in what:
        advice = (
            "take the Python function or module from before torch.jit.script or torch.jit.trace"
        )
    else:
        advice = (
            "only a function written in Python has locals that can be taken: take one that calls it"
        )
    return f"{name} is {what}, not a Python function; {advice}."


def _look_up(target: str) -> object:
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise TargetNotFoundError(
            f"{target!r} does not say where the module ends; write 'package.module:Qual.name', "
            f"for example {_with_colon(target)!r}."
        )
    found: object = _import(target, module_name)
    walked = module_name + ":"
    for part in path.split("."):
        if part == "<locals>":
            raise TargetNotFoundError(
                f"{target!r} is inside a function ({walked.rstrip('.')}) and does not exist before "
                "that runs; pass the function object itself."
            )
        found = _attribute(found, part, target, walked.rstrip(".:"))
        walked += f"{part}."
    return found


def _import(target: str, module_name: str) -> types.ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise  # the module is there, and something that it imports is not
        raise TargetNotFoundError(
            f"{target!r} does not resolve: there is no module {missing!r}. Check the part before "
            "the colon, and that its package is installed."
        ) from error


def _attribute(owner: Any, name: str, target: str, walked: str) -> object:
    try:
        # Static, so that a staticmethod, classmethod or property is seen as what it is.
        return inspect.getattr_static(owner, name)
    except AttributeError:
        pass
    try:
        return getattr(owner, name)
    except AttributeError:
        nearest = difflib.get_close_matches(name, dir(owner), n=1)
        guess = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise TargetNotFoundError(
            f"{target!r} does not resolve: {walked} has no attribute {name!r}.{guess}"
        ) from None


def _with_colon(target: str) -> str:
    parts = target.replace(":", ".").strip(".").split(".")
    first_capital = next((i for i, part in enumerate(parts) if part[:1].isupper()), len(parts) - 1)
    module = ".".join(parts[: max(first_capital, 1)])
    return f"{module}:{'.'.join(parts[max(first_capital, 1) :]) or 'function'}"
