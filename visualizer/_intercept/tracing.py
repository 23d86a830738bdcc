"""What torch's compiler is reading just now, asked from within its reading.

Functions of ours that have `runs_while_compiling` are not compiled: they run once, while the graph
is being made, and what they return is a constant of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, TypeVar

import torch
from torch import nn

from visualizer._intercept.compiled import Look, add_spot
from visualizer._intercept.telling import tell_errors

__all__ = ["NOT_SEEN", "find_local", "find_spot", "hides", "reading", "runs_while_compiling"]

NOT_SEEN = -1
"""In place of a spot's number, where the graph is to be left as it is."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_whole: set[CodeType] = set()


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


@runs_while_compiling
def find_spot(look: Look, module_name: str = "self") -> int:
    """Return the number of an attention call; called by the function that calls attention.

    Args:
        look: As in `Spot`.
        module_name: The caller's name for the module that attends.
    """
    with tell_errors():
        return _find_spot(look, module_name)
    return NOT_SEEN


def _find_spot(look: Look, module_name: str) -> int:
    caller, *outer = reading()
    if caller.output.export or _is_exporting():
        return NOT_SEEN
    if any(reader.f_code in _whole for reader in outer):
        return NOT_SEEN
    found = [find_local(caller, module_name)]
    found += [find_local(reader, "self") for reader in outer]
    modules: list[nn.Module] = []
    for module in found:
        if isinstance(module, nn.Module) and not any(module is each for each in modules[-1:]):
            modules.append(module)
    return add_spot(look, modules)


def _is_exporting() -> bool:
    asked = getattr(torch.compiler, "is_exporting", None)
    return asked is not None and bool(asked())
