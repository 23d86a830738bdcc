"""Names from data as names of files: they lead nowhere, and differ on every file system."""

from __future__ import annotations

import hashlib
import re

from visualizer.errors import OutOfRangeError

__all__ = ["Names", "check_folder_name", "safe_name"]

_LONGEST = 120
_PLAIN = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?")
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d|conin|conout|clock)(?:\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]|[. ]$')


def safe_name(name: str) -> str:
    """Return a name as it can be that of a file, the same each time.

    Letters, digits, `_`, `-` and dots in between stay. A name with anything else in it, an empty
    one, a very long one and that of a device of Windows have a hash behind them instead.

    Example:
        >>> safe_name("blocks.3.mlp"), safe_name("../x")
        ('blocks.3.mlp', 'x~d6b96a97')
    """
    if _PLAIN.fullmatch(name) and len(name) <= _LONGEST and not _DEVICES.fullmatch(name):
        return name
    return _with_hash(name)


def _with_hash(name: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:_LONGEST].strip("._")
    kept = f"_{kept}" if _DEVICES.fullmatch(kept) else kept
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{kept or '_'}~{digest[:8]}"


class Names:
    """The names in one folder, which differ where capitals and small letters don't, too."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, name: str) -> str:
        """Return a safe name that was not returned before."""
        made = safe_name(name)
        if made.casefold() in self._taken:
            made = _with_hash(name)
        numbered, number = made, 1
        while numbered.casefold() in self._taken:
            number += 1
            numbered = f"{made}~{number}"
        self._taken.add(numbered.casefold())
        return numbered


def check_folder_name(name: str, what: str) -> None:
    """Make sure that a name that a user chose is that of one folder, on every system.

    Raises:
        TypeError: It is no string.
        OutOfRangeError: It is empty, a path, or not a name that a folder can have.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} is {name!r}; expected the name of a folder, such as 'run_1'")
    is_name = name not in ("", ".", "..") and not _FORBIDDEN.search(name)
    if not is_name or len(name.encode("utf-8", "replace")) > 255 or _DEVICES.fullmatch(name):
        raise OutOfRangeError(
            f"{what} is {name!r}; expected the name of one folder, such as 'run_1': not empty, no "
            f'path, and without < > : " / \\ | ? *. Where it lies is told apart from it'
        )
