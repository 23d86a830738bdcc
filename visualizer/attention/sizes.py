"""How much memory a part of a map would take."""

from __future__ import annotations

import math
from collections.abc import Sequence

from visualizer.errors import MapTooLargeError

__all__ = ["MAX_BYTES", "check_size", "in_words"]

MAX_BYTES = 2**30
"""What is made without being asked twice."""


def in_words(nbytes: int) -> str:
    """Return a number of bytes as people write it.

    Example:
        >>> in_words(8 * 2**30)
        '8 GiB'
    """
    power = min(4, max(0, nbytes.bit_length() - 1) // 10)
    return f"{nbytes / 1024**power:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def check_size(shape: Sequence[int], itemsize: int, max_bytes: int, name: str) -> None:
    """Make sure that an array is not too large to be made.

    Raises:
        MapTooLargeError: It is; the message says what to do instead.
    """
    nbytes = math.prod(shape) * itemsize
    if nbytes > max_bytes:
        raise MapTooLargeError(
            f"{name}, of shape {tuple(shape)}, would take {in_words(nbytes)}; the limit is "
            f"{in_words(max_bytes)}. Take rows, m.row(17) or m[0, 3, 17], or a head, "
            f"m.weights(head=3); or statistics, which need no map: m.entropy(), m.received(), "
            f"m.top_keys(8), m.mass(0), m.distance(); or allow it, m.weights(max_bytes={nbytes})"
        )
