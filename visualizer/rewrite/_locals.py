"""Find a named local in a code object: where it is kept, and what to say when it is not there."""

from __future__ import annotations

import difflib
import dis
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType

from visualizer._compat import VersionFacts
from visualizer.errors import UnknownLocalError
from visualizer.rewrite._binding import only_in_comprehensions
from visualizer.rewrite._decode import decode

__all__ = ["Local", "find_local", "local_names"]

_CLEARS = dis.opmap.get("LOAD_FAST_AND_CLEAR")  # None where no comprehension is inlined
_COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})


@dataclass(frozen=True, slots=True)
class Local:
    """Where a function keeps a local.

    Attributes:
        name: As the code spells it (a private name of a class is mangled there).
        index: Its place in the frame: fast locals, then cell variables, then free variables.
        is_cell: It is shared with another function through a cell.
    """

    name: str
    index: int
    is_cell: bool


def find_local(code: CodeType, name: str, facts: VersionFacts) -> Local:
    """Find a local by name, in its source spelling or its mangled one.

    Raises:
        UnknownLocalError: The code has no such local.
    """
    for spelling in _spellings(code, name):
        local = _find(code, spelling, facts)
        if local is not None:
            return local
    raise UnknownLocalError(_explain_unknown(code, name, facts))


def local_names(code: CodeType, facts: VersionFacts) -> list[str]:
    """Return the names of a code object's locals: arguments, variables, cell and free variables."""
    names = dict.fromkeys((*code.co_varnames, *code.co_cellvars, *code.co_freevars))
    return [name for name in names if name.isidentifier() and _find(code, name, facts) is not None]


def _find(code: CodeType, name: str, facts: VersionFacts) -> Local | None:
    # A free variable comes first: beside it the same name in co_varnames is a comprehension's.
    cells_only = [cell for cell in code.co_cellvars if cell not in code.co_varnames]
    if name in code.co_freevars:
        index = len(code.co_varnames) + len(cells_only) + code.co_freevars.index(name)
        return Local(name, index, is_cell=True)
    if name in cells_only:
        return Local(name, len(code.co_varnames) + cells_only.index(name), is_cell=True)
    if name in code.co_varnames:
        index = code.co_varnames.index(name)
        if not _is_borrowed(code, index, facts):
            return Local(name, index, is_cell=name in code.co_cellvars)
    return None


def _is_borrowed(code: CodeType, index: int, facts: VersionFacts) -> bool:
    """Tell whether a local is only ever the variable of an inlined comprehension."""
    arguments = code.co_argcount + code.co_kwonlyargcount
    if index < arguments or _CLEARS is None or _CLEARS not in code.co_code[::2]:
        return False
    decoded = decode(code, facts)
    clears = any(
        instruction.name == "LOAD_FAST_AND_CLEAR" and instruction.arg == index
        for instruction in decoded.instructions
    )
    return clears and only_in_comprehensions(decoded, index)


def _spellings(code: CodeType, name: str) -> Iterator[str]:
    yield name
    if name.startswith("__") and not name.endswith("__"):
        for part in reversed(code.co_qualname.split(".")[:-1]):
            if part.strip("_") and part != "<locals>":
                yield f"_{part.lstrip('_')}{name}"


def _explain_unknown(code: CodeType, name: str, facts: VersionFacts) -> str:
    where = f"{code.co_qualname}()"
    if _is_comprehension_variable(code, name):
        return (
            f"{name!r} is only a comprehension's variable in {where}, and it is gone when the "
            "comprehension ends; assign the value you want to a name of its own."
        )
    known = local_names(code, facts)
    has = f"it has {', '.join(known)}" if known else "it has no locals at all"
    nearest = difflib.get_close_matches(name, known, n=2)
    guess = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    inner = [f"{nested.co_qualname}()" for nested in _nested(code) if name in nested.co_varnames]
    hint = f" ({inner[0]} inside it has one: instrument that function.)" if inner else ""
    return f"{where} has no local named {name!r}; {has}.{guess}{hint}"


def _is_comprehension_variable(code: CodeType, name: str) -> bool:
    nested = any(
        name in (*inner.co_varnames, *inner.co_cellvars)
        for inner in _nested(code)
        if inner.co_name in _COMPREHENSIONS
    )
    return nested or name in code.co_varnames


def _nested(code: CodeType) -> Iterator[CodeType]:
    return (constant for constant in code.co_consts if isinstance(constant, CodeType))
