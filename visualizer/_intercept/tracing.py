"""What torch's compiler is reading just now, asked from within its reading.

Functions of ours that have `runs_while_compiling` are not compiled: they run once, while the graph
is being made, and what they return is a constant of it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CodeType
from typing import Any, TypeVar

import torch
from torch import nn

from visualizer._intercept.compiled import Argument, Look, add_spot
from visualizer._intercept.telling import tell_errors

__all__ = [
    "NOT_SEEN",
    "find_local",
    "find_modules",
    "find_spot",
    "find_spot_of",
    "hides",
    "reading",
    "runs_while_compiling",
]

NOT_SEEN = -1
"""In place of a spot's number, where the graph is to be left as it is."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_whole: set[CodeType] = set()
_calls: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
"""The number of a call that is being compiled, by its translator."""
_count = itertools.count()


def runs_while_compiling(function: _Function) -> _Function:
    """Decorate what is to be run by the compiler itself (`assume_constant_result`, unimported)."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def hides(function: _Function) -> _Function:
    """Decorate what calls an attention function that is observed as a whole."""
    _whole.add(function.__code__)
    return function


def reading() -> Iterator[Any]:
    """Yield the functions that are being compiled, as Dynamo's translators, the innermost first."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    reader: Any = InstructionTranslator.current_tx().output.current_tx
    while reader is not None:
        yield reader
        reader = getattr(reader, "parent", None)


def find_local(reader: Any, name: str) -> Any:
    """Return the value that a name has where it stands for one object; None otherwise."""
    variable = reader.symbolic_locals.get(name)
    if hasattr(type(variable), "peek_value"):
        if not variable.is_realized():  # to look at it would add a guard
            return variable.peek_value()
        variable = variable.realize()
    for attribute in ("value", "fn"):
        if getattr(variable, attribute, None) is not None:
            return getattr(variable, attribute)
    return None


def find_modules(readers: Iterable[Any], name: str = "self") -> list[nn.Module]:
    """Return the modules whose code is being compiled, the innermost first.

    Args:
        readers: As `reading` yields them.
        name: What the first of them calls its module; the others' is `self`.
    """
    found: list[nn.Module] = []
    for reader in readers:
        module = find_local(reader, name)
        if isinstance(module, nn.Module) and not any(module is each for each in found[-1:]):
            found.append(module)
        name = "self"
    return found


@runs_while_compiling
def find_spot(look: Look, name: str = "self") -> int:
    """Return the number of an attention call, for the function that hands it over.

    Args:
        look: As in `Spot`.
        name: What that function calls the module that attends.
    """
    with tell_errors():
        readers = list(reading())
        return find_spot_of(readers, look, find_modules(readers, name))
    return NOT_SEEN


def find_spot_of(readers: Sequence[Any], look: Look, modules: list[nn.Module]) -> int:
    """Return the number of an attention call.

    Args:
        readers: What is being compiled, as `reading` yields it.
        look: As in `Spot`.
        modules: As `find_modules` returns them.
    """
    if readers[0].output.export or _is_exporting():
        return NOT_SEEN
    if any(reader.f_code in _whole for reader in readers[1:]):
        return NOT_SEEN
    argument = _find_argument(readers, modules[-1]) if modules else None
    return add_spot(look, modules, _number_calls(readers, modules), argument)


def _number_calls(readers: Sequence[Any], modules: list[nn.Module]) -> list[int | None]:
    """Return which call each module is in: that of its outermost `forward`."""
    found: dict[int, int] = {}
    for reader in readers:
        if reader.f_code.co_name == "forward":
            found[id(find_local(reader, "self"))] = _calls.setdefault(reader, next(_count))
    return [found.get(id(module)) for module in modules]


def _find_argument(readers: Sequence[Any], module: nn.Module) -> Argument | None:
    """Return how the compiled function gets at a module; None where it is a method of the module's.

    Then the module's call is on the stack when the graph runs.
    """
    if find_local(readers[-1], "self") is module:
        return None
    reader = next((each for each in reversed(readers) if find_local(each, "self") is module), None)
    if reader is None:
        return None
    name = getattr(getattr(reader.symbolic_locals["self"], "source", None), "name", None)
    name = name() if callable(name) else name
    return Argument.of(readers[-1].f_code, name) if isinstance(name, str) else None


def _is_exporting() -> bool:
    asked = getattr(torch.compiler, "is_exporting", None)
    return asked is not None and bool(asked())
