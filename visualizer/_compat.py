"""Every fact about a Python version, named by the behaviour it stands for.

No other module asks which Python is running. A new version is one more entry in
``_FACTS``, added once the whole test suite and ``make corpus`` pass on it.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from visualizer.errors import UnsupportedPythonError

__all__ = ["VersionFacts", "facts", "facts_for"]


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What the engine must know about one CPython version's bytecode.

    Attributes:
        version: `(major, minor)`.
        returns: Instructions that leave a function with a value.
        constant_return: The one of them that carries its value as a constant, if there is one.
        checked_load: Reads a fast local and raises where it is unbound. From 3.12 on a plain
            LOAD_FAST reads NULL instead.
        jump_if_false: Pops a bool and jumps forward where it is false.
        attribute_shift: LOAD_ATTR keeps a flag below the name's index, from 3.12 on.
        null_before_callable: A call expects NULL below the callable; from 3.13 on above it.
        precall: A PRECALL instruction stands before CALL.
        generator_starts_with: Values on the stack at the first instruction of a generator, as
            `dis.stack_effect` counts them.
        call_unwinds_from_before: An error in a Python function that was called is looked up in
            the exception table as if the instruction before the CALL had raised it.
        backward_jumps: Instructions that jump backward although their name does not say so.
    """

    version: tuple[int, int]
    returns: frozenset[str]
    constant_return: str | None
    checked_load: str
    jump_if_false: str
    attribute_shift: int
    null_before_callable: bool
    precall: bool
    generator_starts_with: int
    call_unwinds_from_before: bool
    backward_jumps: frozenset[str] = frozenset()


_FACTS = {
    entry.version: entry
    for entry in (
        VersionFacts(
            version=(3, 11),
            returns=frozenset({"RETURN_VALUE"}),
            constant_return=None,
            checked_load="LOAD_FAST",
            jump_if_false="POP_JUMP_FORWARD_IF_FALSE",
            attribute_shift=0,
            null_before_callable=True,
            precall=True,
            generator_starts_with=1,
            call_unwinds_from_before=False,
        ),
        VersionFacts(
            version=(3, 12),
            returns=frozenset({"RETURN_VALUE", "RETURN_CONST"}),
            constant_return="RETURN_CONST",
            checked_load="LOAD_FAST_CHECK",
            jump_if_false="POP_JUMP_IF_FALSE",
            attribute_shift=1,
            null_before_callable=True,
            precall=False,
            generator_starts_with=1,
            call_unwinds_from_before=False,
        ),
        VersionFacts(
            version=(3, 13),
            returns=frozenset({"RETURN_VALUE", "RETURN_CONST"}),
            constant_return="RETURN_CONST",
            checked_load="LOAD_FAST_CHECK",
            jump_if_false="POP_JUMP_IF_FALSE",
            attribute_shift=1,
            null_before_callable=False,
            precall=False,
            generator_starts_with=0,
            call_unwinds_from_before=True,
        ),
    )
}


def facts_for(implementation: str, version: tuple[int, int]) -> VersionFacts:
    """Return the facts of one interpreter.

    Args:
        implementation: `platform.python_implementation()`.
        version: `(major, minor)`.
    Raises:
        UnsupportedPythonError: The engine does not know that interpreter's bytecode.
    """
    known = ", ".join(f"{major}.{minor}" for major, minor in sorted(_FACTS))
    found = f"{implementation} {version[0]}.{version[1]}"
    if implementation == "CPython" and version in _FACTS:
        return _FACTS[version]
    if implementation == "CPython" and version > max(_FACTS):
        advice = "look for a newer release of get-local, or use one of those Pythons"
    else:
        advice = "use one of those Pythons"
    raise UnsupportedPythonError(
        f"visualizer.rewrite knows the bytecode of CPython {known}, and this is {found}; "
        "a wrong guess could crash the interpreter, so nothing was instrumented. To go on, "
        f"{advice}."
    )


def facts() -> VersionFacts:
    """Return the facts of the interpreter that is running.

    Raises:
        UnsupportedPythonError: The engine does not know this interpreter's bytecode.
    """
    return facts_for(platform.python_implementation(), sys.version_info[:2])
