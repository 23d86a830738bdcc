"""Find out where a fast local may be bound: a may-analysis over a code object's paths.

One subtlety makes it more than a walk over stores. A comprehension that the compiler inlined
(PEP 709) borrows the function's slot: LOAD_FAST_AND_CLEAR puts the outer value (or NULL) on the
stack, and a STORE_FAST puts it back. So the walk carries, beside the set of names that may be
bound, what each stack position saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from visualizer.rewrite._decode import Decoded, Instruction

__all__ = ["may_be_bound", "only_in_comprehensions"]


@dataclass(frozen=True, slots=True)
class _Saved:
    """A stack position that holds a local's outer value while a comprehension uses its slot."""

    slot: int
    was_bound: bool


_CELL_USES = frozenset({"LOAD_DEREF", "STORE_DEREF", "DELETE_DEREF", "LOAD_CLOSURE"})
_Stack = tuple[_Saved | None, ...]


@dataclass(frozen=True, slots=True)
class _State:
    """What may hold before an instruction: the slots that may be bound, and the stack."""

    bound: frozenset[int]
    stack: _Stack

    def join(self, other: _State) -> _State:
        stack = tuple(
            _Saved(mine.slot, mine.was_bound or theirs.was_bound) if mine and theirs else None
            for mine, theirs in zip(self.stack, other.stack, strict=True)
        )
        return _State(self.bound | other.bound, stack)


def may_be_bound(decoded: Decoded, slots: Iterable[int]) -> list[frozenset[int]]:
    """Return, for each instruction, which of these slots may be bound before it runs."""
    states = _analyse(decoded, frozenset(slots))
    return [state.bound if state else frozenset() for state in states]


def only_in_comprehensions(decoded: Decoded, slot: int) -> bool:
    """Tell whether a slot only ever holds the variable of an inlined comprehension."""
    name_is_borrowed = False
    for instruction, state in zip(
        decoded.instructions, _analyse(decoded, frozenset({slot})), strict=True
    ):
        if state is None:
            continue
        borrowed = any(saved and saved.slot == slot for saved in state.stack)
        name_is_borrowed |= borrowed
        touches = any(used == slot for _, used in _slot_uses(instruction))
        touches |= instruction.name in _CELL_USES and instruction.arg == slot
        clears = instruction.name == "LOAD_FAST_AND_CLEAR"
        if not borrowed and (slot in state.bound or (touches and not clears)):
            return False
    return name_is_borrowed


def _analyse(decoded: Decoded, slots: frozenset[int]) -> list[_State | None]:
    states: list[_State | None] = [None] * len(decoded.instructions)
    code = decoded.code
    arguments = code.co_argcount + code.co_kwonlyargcount
    arguments += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)  # *args, **kwargs
    depth = decoded.stack_depths()
    start = _State(frozenset(slot for slot in slots if slot < arguments), (None,) * (depth[0] or 0))
    pending = [(0, start)]
    while pending:
        index, state = pending.pop()
        known = states[index]
        joined = known.join(state) if known else state
        if joined == known:
            continue
        states[index] = joined
        pending.extend(_following(decoded, index, joined, slots))
    return states


def _following(
    decoded: Decoded, index: int, state: _State, slots: frozenset[int]
) -> Iterator[tuple[int, _State]]:
    guard = decoded.guards[index]
    if guard is not None:
        stack = state.stack[: guard.depth] + (None,) * (guard.push_lasti + 1)
        yield decoded.index_at[guard.target], _State(state.bound, stack)
    instruction = decoded.instructions[index]
    for following, effect in decoded.successors(index):
        yield following, _step(instruction, effect, state, slots)


def _step(instruction: Instruction, effect: int, state: _State, slots: frozenset[int]) -> _State:
    bound, stack = set(state.bound), list(state.stack)
    if instruction.name == "SWAP":
        stack[-1], stack[-instruction.arg] = stack[-instruction.arg], stack[-1]
        return _State(state.bound, tuple(stack))
    uses = list(_slot_uses(instruction))
    if not uses:
        return _State(state.bound, _resize(stack, effect))
    for action, slot in uses:
        if action == "store":
            saved = stack.pop()
            is_bound = saved.was_bound if saved and saved.slot == slot else True
            (bound.add if is_bound and slot in slots else bound.discard)(slot)
        elif action == "clear":
            stack.append(_Saved(slot, slot in bound) if slot in slots else None)
            bound.discard(slot)
        elif action == "delete":
            bound.discard(slot)
        else:
            stack.append(None)
    return _State(frozenset(bound), tuple(stack))


def _resize(stack: list[_Saved | None], effect: int) -> _Stack:
    if effect < 0:
        return tuple(stack[:effect])
    return (*stack, *(None,) * effect)


def _slot_uses(instruction: Instruction) -> Iterator[tuple[str, int]]:
    """Yield `(what, slot)` for each fast local that an instruction touches, in order."""
    name, arg = instruction.name, instruction.arg
    if name == "LOAD_FAST_AND_CLEAR":
        yield "clear", arg
    elif name == "DELETE_FAST":
        yield "delete", arg
    elif name in {"STORE_FAST_STORE_FAST", "STORE_FAST_LOAD_FAST"}:
        yield "store", arg >> 4
        yield "store" if name.endswith("STORE_FAST") else "load", arg & 15
    elif name.startswith("LOAD_FAST") and name.count("LOAD_FAST") == 2:
        yield "load", arg >> 4
        yield "load", arg & 15
    elif name.startswith("LOAD_FAST"):
        yield "load", arg
    elif name == "STORE_FAST":
        yield "store", arg
