"""Text that others wrote, as a terminal can be given it."""

from __future__ import annotations

__all__ = ["counted", "printable", "shortened"]


def printable(text: object) -> str:
    """Return text in which what is no character to be seen is written out, as "\\x1b".

    Control characters and escape sequences would move the cursor, colour what follows or set the
    clipboard; marks of direction would show it in another order.
    """
    found = str(text)
    if found.isprintable():
        return found
    return "".join(
        character if character.isprintable() else _written_out(character) for character in found
    )


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: object, most: int) -> str:
    """Return printable text of a bounded length: its middle is left out where it has more."""
    found = str(text)
    if len(found) <= most:
        return printable(found)
    head = most * 2 // 3
    return f"{printable(found[:head])}…{printable(found[len(found) - (most - head - 1) :])}"


def counted(count: int, what: str) -> str:
    """Return "1 unit" or "2 units"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
