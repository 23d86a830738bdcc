"""The engine's check of its own work: what is wrong is refused, and the function left alone."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any

import pytest

from visualizer.errors import RewriteCheckError
from visualizer.rewrite import _rewrite, instrument
from visualizer.rewrite._positions import stretch


def scale(x: Any) -> Any:
    factor = [x, "constant"]
    for _ in range(3):
        try:
            factor.append(1 // x)
        except ZeroDivisionError:
            return None
    return factor


def _other_argument(code: CodeType) -> CodeType:
    """Load another local: of the first instruction that comes from the original."""
    opcodes = bytearray(code.co_code)
    opcodes[opcodes.index(code.co_code[2]) + 1] ^= 1
    return code.replace(co_code=bytes(opcodes))


BROKEN: dict[str, tuple[Callable[[CodeType], CodeType], str]] = {
    "constants": (
        lambda code: code.replace(co_consts=(*code.co_consts, 1)),
        "co_consts changed",
    ),
    "names": (
        lambda code: code.replace(co_names=("other", *code.co_names[1:])),
        "co_names changed",
    ),
    "flags": (lambda code: code.replace(co_flags=code.co_flags ^ 0x20), "co_flags changed"),
    "lines": (
        lambda code: code.replace(co_firstlineno=code.co_firstlineno + 1),
        "moved in the source",
    ),
    "positions that end too early": (
        lambda code: code.replace(co_linetable=code.co_linetable[:-20]),
        "the position table does not cover the code",
    ),
    "handlers": (
        lambda code: code.replace(co_exceptiontable=b""),
        "is covered by another exception handler",
    ),
    "arguments": (_other_argument, "had argument"),
    "instructions": (
        lambda code: code.replace(co_code=code.co_code + code.co_code[-2:]),
        "instructions were written and",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_code_is_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_, problem = BROKEN[what]
    assemble = _rewrite.assemble
    monkeypatch.setattr(
        _rewrite, "assemble", lambda *args, **names: break_(assemble(*args, **names))
    )
    code = scale.__code__
    with pytest.raises(RewriteCheckError) as caught:
        instrument(scale, "factor", "x", sink=[])
    message = str(caught.value)
    assert message.startswith(
        f"the rewritten code of scale() ({__file__}:{code.co_firstlineno}) failed the engine's "
        "check: "
    )
    assert problem in message
    assert message.endswith(
        "The function was left as it is. This is a bug in visualizer.rewrite; please report it "
        "with the function."
    )
    assert scale.__code__ is code


# Entries of a position table: a first byte (mark, kind, length - 1), then the kind's payload.
NO_COLUMNS = bytes([0x80 | 13 << 3 | 2, 4])  # three units, two lines further on
NO_LINE = bytes([0x80 | 15 << 3 | 1])  # two units
SHORT = bytes([0x80 | 3 << 3 | 0, 0x21])  # one unit, the same line
ONE_LINE = bytes([0x80 | 12 << 3 | 1, 5, 9])  # two units, two lines further on
LONG = bytes([0x80 | 14 << 3 | 1, 0x40 | 0, 3, 2, 1, 7])  # two units, 96 lines further on


def _positions(table: bytes, units: int) -> list[Any]:
    opcodes = scale.__code__.co_code[:2] * units
    code = scale.__code__.replace(co_code=opcodes, co_linetable=table, co_exceptiontable=b"")
    return list(code.co_positions())


@pytest.mark.parametrize("length", [1, 2, 8, 9, 30])
@pytest.mark.parametrize(
    "entry", [NO_COLUMNS, NO_LINE, SHORT, ONE_LINE, LONG], ids=lambda entry: entry.hex()
)
def test_stretched_positions(entry: bytes, length: int) -> None:
    """Each unit's position is repeated, and what comes behind it stays where it was."""
    table = ONE_LINE + entry + ONE_LINE + LONG + entry
    units = sum((byte & 7) + 1 for byte in table if byte & 0x80)
    lengths = [length if unit % 3 == 0 else 1 for unit in range(units)]
    before = _positions(table, units)
    assert len({position[0] for position in before}) >= 3
    wanted = [
        position for position, times in zip(before, lengths, strict=True) for _ in range(times)
    ]
    # An entry is stretched as a whole: its units share one position.
    assert _positions(stretch(table, lengths), sum(lengths)) == wanted
