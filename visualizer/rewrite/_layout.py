"""Put instructions in order and make every table of a code object true again.

A code object is read into items that refer to each other (a jump to its target, a guard to its
handler) instead of to offsets. Others can be put between them; offsets are then worked out
anew, and jumps, exception table and positions follow. With nothing put in between, the result
equals the original.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import CodeType

from bytecode import ConcreteBytecode, ConcreteInstr
from bytecode.concrete import ExceptionTableEntry
from bytecode.instr import UNSET, opcode_has_argument

from visualizer._compat import VersionFacts
from visualizer.rewrite._decode import Decoded, Guard, jumps_backward
from visualizer.rewrite._positions import stretch

__all__ = ["Handler", "Item", "assemble", "read_items"]


@dataclass(slots=True, eq=False)
class Handler:
    """Where an exception goes: an entry of the exception table, with its target as an item.

    Attributes:
        depth: Values that stay on the stack.
        push_lasti: The offset of the raising instruction is pushed below the exception.
        target: The handler's first instruction, once it is known.
    """

    depth: int
    push_lasti: bool = False
    target: Item | None = None


@dataclass(slots=True, eq=False)
class Item:
    """One instruction that is to be laid out.

    Attributes:
        name: The instruction's name.
        arg: Its argument; that of a jump is worked out.
        jump: The item that it jumps to.
        handler: What covers it in the exception table.
        prefixes: EXTENDED_ARG prefixes that it has at the least.
        origin: Code unit of the original whose position in the source it has.
        inserted: It is not the original's.
    """

    name: str
    arg: int = 0
    jump: Item | None = None
    handler: Handler | None = None
    prefixes: int = 0
    origin: int = 0
    inserted: bool = False
    start: int = field(default=0, init=False)
    end: int = field(default=0, init=False)
    grown: int = field(default=0, init=False)
    caches: int = field(init=False)

    def __post_init__(self) -> None:
        self.caches = _caches(self.name)


def read_items(decoded: Decoded) -> list[Item]:
    """Return a code object's instructions as items, in order."""
    items = [
        Item(
            instruction.name,
            instruction.arg,
            prefixes=instruction.opcode_at - instruction.start,
            origin=instruction.start,
        )
        for instruction in decoded.instructions
    ]
    handlers: dict[Guard, Handler] = {}
    for item, instruction, guard in zip(items, decoded.instructions, decoded.guards, strict=True):
        if instruction.target is not None:
            item.jump = items[decoded.index_at[instruction.target]]
        if guard is not None:
            target = items[decoded.index_at[guard.target]]
            item.handler = handlers.setdefault(
                guard, Handler(guard.depth, guard.push_lasti, target)
            )
    return items


def assemble(decoded: Decoded, items: Sequence[Item], *, names: tuple[str, ...]) -> CodeType:
    """Return a code object made of these items; the rest is as in the original."""
    code = decoded.code
    _settle_offsets(items, decoded.facts)
    lengths = [1] * (len(code.co_code) // 2)
    for item in items:
        lengths[item.origin] += item.end - item.start if item.inserted else item.grown
    concrete = ConcreteBytecode.from_code(code, extended_arg=True)
    concrete[:] = [unit for item in items for unit in _units(item)]
    concrete.exception_table = list(_exception_table(items))
    concrete.names = list(names)
    rebuilt = concrete.to_code(stacksize=code.co_stacksize, compute_exception_stack_depths=False)
    return rebuilt.replace(co_linetable=stretch(code.co_linetable, lengths))


def _settle_offsets(items: Sequence[Item], facts: VersionFacts) -> None:
    """Give every item its offset and every jump its distance.

    A long distance needs a prefix, which makes other distances longer: repeat until none grows.
    """
    settled = False
    while not settled:
        settled = True
        offset = 0
        for item in items:
            item.start = offset
            offset = item.end = offset + item.prefixes + 1 + item.caches
        for item in items:
            if item.jump is not None:
                distance = item.jump.start - item.end
                item.arg = -distance if jumps_backward(item.name, facts) else distance
            needed = (max(item.arg.bit_length(), 1) - 1) // 8
            if needed > item.prefixes:
                item.grown += needed - item.prefixes
                item.prefixes, settled = needed, False


def _units(item: Item) -> Iterator[ConcreteInstr]:
    for shift in range(item.prefixes, 0, -1):
        yield _unit("EXTENDED_ARG", item.arg >> 8 * shift & 0xFF)
    yield _unit(item.name, item.arg & 0xFF)
    for _ in range(item.caches):
        yield _unit("CACHE", 0)


@cache
def _unit(name: str, arg: int) -> ConcreteInstr:
    return ConcreteInstr(name, arg if opcode_has_argument(dis.opmap[name]) else UNSET)


@cache
def _caches(name: str) -> int:
    return _unit(name, 0).use_cache_opcodes()


def _exception_table(items: Sequence[Item]) -> Iterator[ExceptionTableEntry]:
    current: Handler | None = None
    start = end = 0
    for item in (*items, None):
        handler = item.handler if item is not None else None
        if handler is not current:
            if current is not None and current.target is not None:
                yield ExceptionTableEntry(
                    start, end - 1, current.target.start, current.depth, current.push_lasti
                )
            current, start = handler, item.start if item is not None else 0
        if item is not None:
            end = item.end
