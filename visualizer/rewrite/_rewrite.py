"""Rewrite a code object so that it hands over locals at every return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CodeType

from visualizer._compat import VersionFacts
from visualizer.rewrite._binding import may_be_bound
from visualizer.rewrite._check import check
from visualizer.rewrite._decode import Decoded, decode
from visualizer.rewrite._handover import Delivery, hand_over
from visualizer.rewrite._layout import Handler, Item, assemble, read_items
from visualizer.rewrite._locals import Local

__all__ = ["rewrite_code"]


def rewrite_code(code: CodeType, deliveries: Sequence[Delivery], facts: VersionFacts) -> CodeType:
    """Return a code object that does what `code` does and hands over locals at every return.

    With no deliveries the result equals `code`.

    Raises:
        RewriteCheckError: The result failed the engine's own check.
    """
    original = decode(code, facts)
    names = list(code.co_names)
    items = _with_hand_overs(original, deliveries, names)
    rewritten = assemble(original, items, names=tuple(names))
    deepest = check(original, rewritten, items)
    return rewritten.replace(co_stacksize=max(code.co_stacksize, deepest))


def _with_hand_overs(
    original: Decoded, deliveries: Sequence[Delivery], names: list[str]
) -> list[Item]:
    items = read_items(original)
    if not deliveries:
        return items
    slots = {v.index for delivery in deliveries for v in delivery.variables if not v.is_cell}
    bound = may_be_bound(original, slots)
    depths = original.stack_depths()
    beginnings = _line_beginnings(original)
    groups: dict[int, list[Item]] = {}
    for index in original.returns():
        depth = depths[index]
        if depth is None:
            continue  # unreachable

        def is_unbound(variable: Local, bound_here: frozenset[int] = bound[index]) -> bool:
            return not variable.is_cell and variable.index not in bound_here

        groups[index] = hand_over(
            items[index],
            depth,
            deliveries,
            is_unbound,
            _index_in(names),
            original.facts,
            begins_line=index in beginnings,
        )
    _redirect(items, {items[index]: group[0] for index, group in groups.items()})
    return [item for index, single in enumerate(items) for item in groups.get(index, [single])]


def _line_beginnings(original: Decoded) -> set[int]:
    """Return the instructions at which a trace function may be told of a line."""
    positions = list(original.code.co_positions())
    lines = [positions[instruction.opcode_at][0] for instruction in original.instructions]
    beginnings = {
        index for index, line in enumerate(lines) if index == 0 or line != lines[index - 1]
    }
    for instruction in original.instructions:
        if instruction.target is not None:
            beginnings.add(original.index_at[instruction.target])
    beginnings.update(original.index_at[guard.target] for guard in original.guards if guard)
    return beginnings


def _redirect(items: Sequence[Item], groups: dict[Item, Item]) -> None:
    """Let what jumped to a RETURN jump to the beginning of what was put around it."""
    handlers: dict[Handler, None] = {}
    for item in items:
        if item.jump is not None:
            item.jump = groups.get(item.jump, item.jump)
        if item.handler is not None:
            handlers[item.handler] = None
    for handler in handlers:
        if handler.target is not None:
            handler.target = groups.get(handler.target, handler.target)


def _index_in(names: list[str]) -> Callable[[str], int]:
    def index(name: str) -> int:
        if name not in names:
            names.append(name)
        return names.index(name)

    return index
