"""Check a rewritten code object against its original before it is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CodeType

from visualizer.errors import RewriteCheckError
from visualizer.rewrite._decode import Decoded, Guard, decode
from visualizer.rewrite._layout import Item

__all__ = ["check"]


def check(original: Decoded, rewritten: CodeType, items: Sequence[Item]) -> int:
    """Read a rewritten code object anew and hold it against its original.

    Everything that came from the original must still be there, in order, with its arguments,
    jumps, guards, positions and stack depths; what was inserted must fit in between.

    Returns:
        How many values its stack must hold.
    Raises:
        RewriteCheckError: It is not as it should be; the message says where.
    """
    try:
        new = decode(rewritten, original.facts)
        problem = _find_problem(original, new, items)
    except (ValueError, IndexError, KeyError) as error:
        problem = f"it can't be read back ({error!r})"
    if problem:
        code = original.code
        raise RewriteCheckError(
            f"the rewritten code of {code.co_qualname}() ({code.co_filename}:"
            f"{code.co_firstlineno}) failed the engine's check: {problem}. The function was left "
            "as it is. This is a bug in visualizer.rewrite; please report it with the function."
        )
    return max(depth for depth in new.stack_depths() if depth is not None)


def _find_problem(original: Decoded, new: Decoded, items: Sequence[Item]) -> str | None:
    if len(new.instructions) != len(items):
        return f"{len(items)} instructions were written and {len(new.instructions)} are there"
    kept = [index for index, item in enumerate(items) if not item.inserted]
    if len(kept) != len(original.instructions):
        return f"{len(original.instructions) - len(kept)} instructions were lost"
    return (
        _changed_tables(original.code, new.code)
        or _changed_instructions(original, new, items, kept)
        or _changed_positions(original, new, kept)
        or _wrong_depths(original, new, kept)
    )


def _changed_tables(original: CodeType, rewritten: CodeType) -> str | None:
    for table in ("co_consts", "co_varnames", "co_cellvars", "co_freevars", "co_flags"):
        if getattr(original, table) is not getattr(rewritten, table) and (
            repr(getattr(original, table)) != repr(getattr(rewritten, table))
        ):
            return f"{table} changed"
    if rewritten.co_names[: len(original.co_names)] != original.co_names:
        return "co_names changed"
    return None


def _changed_instructions(
    original: Decoded, new: Decoded, items: Sequence[Item], kept: Sequence[int]
) -> str | None:
    """Compare what came from the original: arguments, where jumps go, what covers it."""
    old_index = {new_index: old for old, new_index in enumerate(kept)}

    def leads_to(offset: int) -> int:
        """Return the original instruction that a place leads to, past what was inserted."""
        index = new.index_at[offset]
        while items[index].inserted:
            index += 1
        return old_index[index]

    for old, index in enumerate(kept):
        before, after = original.instructions[old], new.instructions[index]
        where = f"instruction {old} ({before.name})"
        if before.name != after.name:
            return f"{where} became {after.name}"
        if before.target is not None and after.target is not None:
            if original.index_at[before.target] != leads_to(after.target):
                return f"{where} jumps elsewhere"
        elif before.arg != after.arg:
            return f"{where} had argument {before.arg}, and has {after.arg}"
        if not _same_guard(original, original.guards[old], new.guards[index], leads_to):
            return f"{where} is covered by another exception handler"
    return None


def _same_guard(
    original: Decoded, before: Guard | None, after: Guard | None, leads_to: Callable[[int], int]
) -> bool:
    if before is None or after is None:
        return before is after
    return (
        before.depth == after.depth
        and before.push_lasti == after.push_lasti
        and original.index_at[before.target] == leads_to(after.target)
    )


def _changed_positions(original: Decoded, new: Decoded, kept: Sequence[int]) -> str | None:
    before = list(original.code.co_positions())
    after = list(new.code.co_positions())
    if len(after) != len(new.code.co_code) // 2:
        return "the position table does not cover the code"
    for old, index in enumerate(kept):
        was = before[original.instructions[old].opcode_at]
        if was != after[new.instructions[index].opcode_at]:
            return f"instruction {old} moved in the source from {was}"
    return None


def _wrong_depths(original: Decoded, new: Decoded, kept: Sequence[int]) -> str | None:
    before, after = original.stack_depths(), new.stack_depths()
    for old, index in enumerate(kept):
        if before[old] != after[index]:
            return f"instruction {old} has {after[index]} values on the stack, not {before[old]}"
    for index, (guard, depth) in enumerate(zip(new.guards, after, strict=True)):
        if guard is not None and depth is not None and guard.depth > depth:
            return f"instruction {index} is covered by a handler that keeps too many values"
    return None
