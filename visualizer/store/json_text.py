"""JSON that is written as it is made: arrays a part at a time, never the whole text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from visualizer.attention import AttentionMap
from visualizer.errors import ExportTooLargeError
from visualizer.store.plain import OMITTED, LeaveOut

__all__ = ["JsonText"]

_PART = 2**16
"""Numbers that are turned into text at once."""
_WHOLE_BYTES = 64 * 2**20
"""Maps up to this are computed at once, as `weights()` does; rows may differ in their last bits."""


class JsonText:
    """Writes values as JSON (RFC 8259): NaN is null, infinities are ±1e999.

    Args:
        file: Where it goes.
        leave_out: Is told what JSON can't hold.
        max_bytes: How long it may become; None is as long as it will.
        why: The message where it becomes longer.
    """

    def __init__(
        self, file: IO[bytes], leave_out: LeaveOut, max_bytes: int | None, why: str
    ) -> None:
        self._file, self._leave_out = file, leave_out
        self._max_bytes, self._why = max_bytes, why
        self.nbytes = 0

    def raw(self, text: str) -> None:
        """Write a part of the text.

        Raises:
            ExportTooLargeError: It becomes too long.
        """
        encoded = text.encode("ascii")
        self.nbytes += len(encoded)
        if self._max_bytes is not None and self.nbytes > self._max_bytes:
            raise ExportTooLargeError(self._why)
        self._file.write(encoded)

    def fields(self, pairs: Iterable[tuple[str, Callable[[], None]]]) -> None:
        """Write an object.

        Args:
            pairs: Its keys, and what writes their values.
        """
        self.raw("{")
        for number, (key, write) in enumerate(pairs):
            self.raw(f"{',' if number else ''}{json.dumps(key)}:")
            write()
        self.raw("}")

    def items(self, writers: Iterable[Callable[[], None]]) -> None:
        """Write a list of what is written by each of these."""
        self.raw("[")
        for number, write in enumerate(writers):
            self.raw("," if number else "")
            write()
        self.raw("]")

    def value(self, value: Any, name: str) -> None:
        """Write a plain value.

        Args:
            value: As `make_plain` returns it.
            name: What messages call it.
        """
        if value is OMITTED:
            self.raw("null")
        elif isinstance(value, np.ndarray):
            self._array(value, name)
        elif isinstance(value, AttentionMap):
            self._map(value)
        elif isinstance(value, list | tuple):
            self.items(
                lambda item=item, n=n: self.value(item, f"{name}[{n}]")  # type: ignore[misc]
                for n, item in enumerate(value)
            )
        elif isinstance(value, dict):
            self._dict(value, name)
        elif isinstance(value, complex | np.generic):
            self._array(np.asarray(value), name)
        else:
            self.raw(_numbers(value) if isinstance(value, float) else json.dumps(value))

    def _dict(self, value: dict[Any, Any], name: str) -> None:
        keys: dict[str, Any] = {}
        for key in value:
            text = key if isinstance(key, str) else str(key)
            if text in keys or (not isinstance(key, str) and text in value):
                text = f"{text} ({type(key).__name__})"  # 1 and "1"
            while text in keys:
                text += "'"
            keys[text] = key
        self.fields(
            (text, lambda key=key: self.value(value[key], f"{name}[{key!r}]"))  # type: ignore[misc]
            for text, key in keys.items()
        )

    def _array(self, array: NDArray[Any], name: str) -> None:
        if array.dtype.kind == "c":
            parts = {"real": array.real, "imag": array.imag}
            return self.value({key: np.asarray(part) for key, part in parts.items()}, name)
        if array.dtype.kind not in "biufU" or _is_longer_than_a_float(array.dtype):
            self._leave_out(name, f"an array of {array.dtype}, which JSON can't hold")
            return self.raw("null")
        return self._part(array)

    def _part(self, array: NDArray[Any]) -> None:
        if array.size <= _PART or array.ndim == 0:
            made = array.tolist()
            return self.raw(_numbers(made) if array.dtype.kind == "f" else _plain(made))
        if array.ndim > 1:
            return self.items(lambda row=row: self._part(row) for row in array)  # type: ignore[misc]
        self.raw("[")
        for start in range(0, array.size, _PART):
            part = array[start : start + _PART].tolist()
            text = _numbers(part) if array.dtype.kind == "f" else _plain(part)
            self.raw(f"{',' if start else ''}{text[1:-1]}")
        return self.raw("]")

    def _map(self, made: AttentionMap) -> None:
        """Write an attention map, shape `(batch, head, query, key)`, some rows at a time."""
        if made.nbytes <= _WHOLE_BYTES:
            return self._part(made.weights())
        batch, heads, queries, keys = made.shape
        step = max(1, _PART // max(1, keys))

        def rows(item: int, head: int) -> None:
            self.raw("[")
            for start in range(0, queries, step):
                text = _numbers(np.asarray(made[item, head, start : start + step]).tolist())
                self.raw(f"{',' if start else ''}{text[1:-1]}")
            self.raw("]")

        return self.items(
            lambda item=item: self.items(  # type: ignore[misc]
                lambda head=head: rows(item, head)  # type: ignore[misc]
                for head in range(heads)
            )
            for item in range(batch)
        )


def _is_longer_than_a_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" and dtype.itemsize > 8


def _plain(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _numbers(value: Any) -> str:
    """Return floats, or lists of them, as strict JSON."""
    text = _plain(value)
    if "N" in text or "I" in text:
        text = text.replace("NaN", "null").replace("Infinity", "1e999")
    return text
