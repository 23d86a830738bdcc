"""Read a code object: instructions with their jump targets, and the paths between them."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType

from bytecode import ConcreteBytecode, ConcreteInstr
from bytecode.instr import opcode_has_argument

from visualizer._compat import VersionFacts

__all__ = ["Decoded", "Guard", "Instruction", "decode", "jumps_backward"]

_JUMPS = frozenset(dis.hasjrel)
_EXTENDED_ARG = dis.opmap["EXTENDED_ARG"]
_NO_FALL_THROUGH = frozenset(
    {"RAISE_VARARGS", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"}
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, with its EXTENDED_ARG prefix and its inline cache.

    Offsets count code units (two bytes) from the start of the code.

    Attributes:
        name: The instruction's name.
        arg: Its whole argument, prefix included; 0 where it has none.
        start: Offset of its first prefix, or of itself.
        opcode_at: Offset of the instruction proper.
        end: Offset of the next instruction.
        target: Offset that it jumps to, if it is a jump.
    """

    name: str
    arg: int
    start: int
    opcode_at: int
    end: int
    target: int | None

    def stack_effect(self, *, jump: bool) -> int:
        opcode = dis.opmap[self.name]
        arg = self.arg if opcode_has_argument(opcode) else None
        return dis.stack_effect(opcode, arg, jump=jump)


@dataclass(frozen=True, slots=True, eq=False)
class Guard:
    """An entry of the exception table: where an exception goes, and what stays on the stack."""

    target: int
    depth: int
    push_lasti: bool


@dataclass(frozen=True, slots=True)
class Decoded:
    """A code object, read.

    Attributes:
        code: The code object itself.
        instructions: In code order.
        index_at: Index into `instructions` of the one that starts at an offset.
        guards: For each instruction the exception table's entry that covers it.
        facts: What holds for the Python that made the code.
    """

    code: CodeType
    instructions: tuple[Instruction, ...]
    index_at: dict[int, int]
    guards: tuple[Guard | None, ...]
    facts: VersionFacts

    def returns(self) -> Iterator[int]:
        """Yield the index of each instruction that leaves the function with a value."""
        for index, instruction in enumerate(self.instructions):
            if instruction.name in self.facts.returns:
                yield index

    def successors(self, index: int) -> Iterator[tuple[int, int]]:
        """Yield `(index, stack effect)` for each instruction that may run next, errors aside."""
        instruction = self.instructions[index]
        if instruction.target is not None:
            yield self.index_at[instruction.target], instruction.stack_effect(jump=True)
        if instruction.name not in _NO_FALL_THROUGH and instruction.name not in self.facts.returns:
            yield index + 1, instruction.stack_effect(jump=False)

    def stack_depths(self) -> list[int | None]:
        """Return the stack depth before each instruction; None where it can't be reached.

        Raises:
            ValueError: Two paths reach one instruction with different depths.
        """
        depths: list[int | None] = [None] * len(self.instructions)
        is_generator = self.code.co_flags & (0x20 | 0x80 | 0x200)  # generator, coroutine, async
        pending = [(0, self.facts.generator_starts_with if is_generator else 0)]
        while pending:
            index, depth = pending.pop()
            if depths[index] is not None:
                if depths[index] != depth:
                    raise ValueError(
                        f"instruction {index} is reached with {depths[index]} and with {depth} "
                        "values on the stack"
                    )
                continue
            depths[index] = depth
            guard = self.guards[index]
            if guard is not None:
                pending.append((self.index_at[guard.target], guard.depth + guard.push_lasti + 1))
            pending.extend(
                (following, depth + effect) for following, effect in self.successors(index)
            )
        return depths


def decode(code: CodeType, facts: VersionFacts) -> Decoded:
    """Read a code object."""
    concrete = ConcreteBytecode.from_code(code, extended_arg=True)
    units = [unit for unit in concrete if isinstance(unit, ConcreteInstr)]
    instructions = tuple(_instructions(units, facts))
    index_at = {instruction.start: index for index, instruction in enumerate(instructions)}
    by_offset: dict[int, Guard] = {}
    for entry in concrete.exception_table:
        guard = Guard(entry.target, entry.stack_depth, entry.push_lasti)
        for offset in range(entry.start_offset, entry.stop_offset + 1):
            by_offset.setdefault(offset, guard)
    guards = tuple(by_offset.get(instruction.opcode_at) for instruction in instructions)
    return Decoded(code, instructions, index_at, guards, facts)


def _instructions(units: list[ConcreteInstr], facts: VersionFacts) -> Iterator[Instruction]:
    offset = 0
    while offset < len(units):
        start, arg = offset, 0
        while units[offset].opcode == _EXTENDED_ARG:
            arg = arg << 8 | units[offset].arg
            offset += 1
        unit = units[offset]
        if opcode_has_argument(unit.opcode):
            arg = arg << 8 | unit.arg
        end = offset + 1 + unit.use_cache_opcodes()
        target = None
        if unit.opcode in _JUMPS:
            target = end - arg if jumps_backward(unit.name, facts) else end + arg
        yield Instruction(unit.name, arg, start, offset, end, target)
        offset = end


def jumps_backward(name: str, facts: VersionFacts) -> bool:
    """Tell whether a jump's argument counts backward."""
    return "BACKWARD" in name or name in facts.backward_jumps
