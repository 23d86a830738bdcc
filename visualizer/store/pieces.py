"""Dense blocks of memory that are to be written, and where one was written."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["NATIVE", "Known", "Piece", "Ref", "hash_of"]

_INTEGERS = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64"
_FLOATS = "float16 bfloat16 float32 float64 complex64"
_FLOAT8 = "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
NATIVE = frozenset(f"{_INTEGERS} {_FLOATS} {_FLOAT8}".split())
"""Types that safetensors has, by torch's name."""


_SAMPLE = 64


@dataclass(slots=True, eq=False)
class Piece:
    """A dense block of memory.

    Attributes:
        dtype: Its type, by torch's name.
        shape: Its shape, in the order in which it lies in memory.
        memory: What keeps it alive.
        address: Where it begins; read once `wait` has returned.
        nbytes: Its size.
        wait: Waits until the values are there, as they come from a GPU; returns whether they are
            those of when the piece was made.
        release: Gives the memory back to whom it was borrowed from.
    """

    dtype: str
    shape: tuple[int, ...]
    memory: Any
    address: int
    nbytes: int
    wait: Callable[[], bool] | None = None
    release: Callable[[], None] | None = None

    @classmethod
    def of_array(cls, array: NDArray[Any], dtype: str) -> Piece:
        """Return the memory of an array that is contiguous."""
        address = array.__array_interface__["data"][0]
        return cls(dtype, array.shape, array, address, array.nbytes)

    def copy(self) -> Piece:
        """Return the same in memory that is nobody else's."""
        memory = np.empty(self.nbytes, np.uint8)
        ctypes.memmove(memory.ctypes.data, self.address, self.nbytes)
        return Piece(self.dtype, self.shape, memory, memory.ctypes.data, self.nbytes)

    def hash(self) -> str:
        """Return the hash of the bytes as they are now."""
        return hash_of((ctypes.c_char * self.nbytes).from_address(self.address))

    def sample(self) -> bytes:
        """Return some of the bytes, from the beginning, the middle and the end."""
        size = min(self.nbytes, _SAMPLE)
        first, last = self.address, self.address + self.nbytes - size
        read = ctypes.string_at
        return read(first, size) + read((first + last) // 2, size) + read(last, size)


def hash_of(memory: Any) -> str:
    """Return the xxh3_128 of bytes, as it stands in the index."""
    return xxhash.xxh3_128_hexdigest(memory)


@dataclass(slots=True, eq=False)
class Ref:
    """A piece, and its place in a shard once it was written.

    Attributes:
        piece: What is to be written; None once it was, or can't be.
        digest: The hash of its bytes; None until it is computed.
        facts: What stands in the index, in the trees of all rows that have it; empty until it was
            written.
        spare: Further pieces with the same bytes, in case somebody writes to the first.
    """

    piece: Piece | None
    digest: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    spare: list[Piece] = field(default_factory=list)

    def hash(self) -> str:
        """Return the hash of its bytes, which is computed once."""
        piece = self.piece  # first: another thread lets go of it once it has the hash
        if self.digest is None and piece is not None:
            self._is_intact(piece)
        assert self.digest is not None
        return self.digest

    def is_intact(self) -> bool:
        """Tell whether its bytes are what they were when they were first hashed."""
        assert self.piece is not None
        return self._is_intact(self.piece)

    def expect_change(self) -> None:
        """Hash its bytes now, for somebody is going to be given them who may change them."""
        piece = self.piece
        if piece is not None and piece.wait is None and self.digest is None:
            self._is_intact(piece)

    def _is_intact(self, piece: Piece) -> bool:
        digest = piece.hash()
        with _lock:  # who hashed it before it was handed out is not overruled
            if self.digest is None:
                self.digest = digest
            return self.digest == digest

    def turn_to_spare(self) -> None:
        """Let go of memory that was written to; what has the same bytes takes its place."""
        spare = self.spare
        self.let_go()
        if spare:
            self.piece, *self.spare = spare

    def settle(self, unit: int, key: str, at: int) -> None:
        """Note where the piece was written, and let go of it."""
        assert self.piece is not None
        self.facts |= {
            "unit": unit,
            "key": key,
            "at": at,
            "bytes": self.piece.nbytes,
            "dtype": self.piece.dtype,
            "shape": self.piece.shape,
            "xxh3_128": self.digest,
        }
        self.let_go()

    def let_go(self) -> None:
        """Let go of the memory."""
        if self.piece is not None and self.piece.release is not None:
            self.piece.release()
        self.piece, self.spare = None, []

    @property
    def is_lost(self) -> bool:
        """Whether it was not written, and never will be."""
        return self.piece is None and not self.facts


_lock = threading.Lock()


class Known:
    """The pieces of a store so far: the same bytes are written once.

    What has no hash yet is given one only where a sample of its bytes agrees.
    """

    def __init__(self) -> None:
        self._sampled: dict[_Alike, Ref] = {}
        self._hashed: dict[_Alike, Ref] = {}

    def find(self, ref: Ref) -> Ref:
        """Return what has the same bytes; that is the reference itself where there is nothing."""
        assert ref.piece is not None
        dtype, shape = ref.piece.dtype, ref.piece.shape
        if ref.digest is None:
            first = self._add(self._sampled, (dtype, shape, ref.piece.sample()), ref)
            if first is ref:
                return ref
            self._add(self._hashed, (dtype, shape, first.hash()), first)
        return self._add(self._hashed, (dtype, shape, ref.hash()), ref)

    def _add(self, found: dict[_Alike, Ref], alike: _Alike, ref: Ref) -> Ref:
        """Return what there is already."""
        same = found.setdefault(alike, ref)
        if same.is_lost:
            found[alike] = same = ref
        return same


_Alike = tuple[str, tuple[int, ...], bytes | str]
"""Type, shape, and a sample or the hash of the bytes."""
