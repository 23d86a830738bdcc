"""Stretch a position table: the same places in the source over longer code.

The table is a chain of entries; each covers up to eight code units, begins with a byte that has
its top bit set (one bit marker, four bits kind, three bits length - 1), and counts its line
from the previous entry's. The format is CPython's `Objects/locations.md`
(https://github.com/python/cpython/blob/3.13/Objects/locations.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["stretch"]

_LONGEST = 8
_ONE_LINE, _ONE_LINE_LAST, _NO_COLUMNS, _LONG = 10, 12, 13, 14


def stretch(table: bytes, lengths: Sequence[int]) -> bytes:
    """Return a position table for code in which the units have become runs of units.

    Args:
        table: `co_linetable` of the original.
        lengths: For each code unit of the original how many units take its position now. All
            ones give the same table.
    """
    stretched = bytearray()
    unit = 0
    for kind, covered, payload in _entries(table):
        remaining = sum(lengths[unit : unit + covered])
        unit += covered
        while remaining:
            length = min(remaining, _LONGEST)
            stretched.append(0x80 | kind << 3 | length - 1)
            stretched += payload
            kind, payload = _same_line(kind, payload)
            remaining -= length
    return bytes(stretched)


def _entries(table: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield `(kind, units covered, payload)` for each entry."""
    begin = 0
    while begin < len(table):
        end = begin + 1
        while end < len(table) and not table[end] & 0x80:
            end += 1
        first = table[begin]
        yield first >> 3 & 0xF, (first & 7) + 1, table[begin + 1 : end]
        begin = end


def _same_line(kind: int, payload: bytes) -> tuple[int, bytes]:
    """Return the entry that repeats an entry's position right behind it: no line further on."""
    if _ONE_LINE <= kind <= _ONE_LINE_LAST:
        return _ONE_LINE, payload
    if kind == _NO_COLUMNS:
        return kind, b"\0"
    if kind == _LONG:
        line = 1  # a varint: six bits a byte, the next byte belongs to it where bit 6 is set
        while payload[line - 1] & 0x40:
            line += 1
        return kind, b"\0" + payload[line:]
    return kind, payload
