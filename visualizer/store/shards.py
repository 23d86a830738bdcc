"""Tensors in safetensors files: written whole, read a slice at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, TensorSpec, serialize_file

from visualizer.errors import DamagedError
from visualizer.store.pieces import Piece, hash_of

__all__ = ["Written", "hash_slice", "key_of", "read_slice", "write_shard"]

_CHUNK = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Written:
    """A shard that was written.

    Attributes:
        offsets: Where each tensor begins in the file, in bytes, by key.
        header_bytes: The size of what stands before the tensors.
        header_hash: Its hash.
        nbytes: The file's size.
    """

    offsets: Mapping[str, int]
    header_bytes: int
    header_hash: str
    nbytes: int


def key_of(number: int) -> str:
    """Return the key of a shard's tensor: "t0000042"."""
    return f"t{number:07d}"


def write_shard(path: Path, pieces: Sequence[Piece]) -> Written:
    """Write pieces of memory to a file, under the keys of their places.

    Args:
        path: The file, in a folder of the writer's own.
        pieces: They.
    Raises:
        OSError: It can't be written; what was begun is removed.
    """
    specs = {
        key_of(number): TensorSpec(
            dtype=piece.dtype,
            shape=list(piece.shape),
            data_ptr=piece.address,
            data_len=piece.nbytes,
        )
        for number, piece in enumerate(pieces)
    }
    try:
        serialize_file(specs, str(path), metadata={"format": "visualizer"})
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    return _read_header(path)


def _read_header(path: Path) -> Written:
    with path.open("rb") as file:
        first = file.read(8)
        header = file.read(int.from_bytes(first, "little"))
        size = os.fstat(file.fileno()).st_size
    start = 8 + len(header)
    offsets = {
        key: start + facts["data_offsets"][0]
        for key, facts in json.loads(header).items()
        if key != "__metadata__"
    }
    return Written(offsets, start, hash_of(first + header), size)


def read_slice(path: Path, at: int, nbytes: int) -> NDArray[np.uint8]:
    """Return some bytes of a file, read into memory of their own.

    Raises:
        DamagedError: The file is missing, or ends before.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise DamagedError(f"{path} can't be opened: {error.strerror}") from error
    try:
        if at + nbytes > os.fstat(descriptor).st_size:
            raise EOFError
        buffer = np.empty(nbytes, np.uint8)
        _read_into(descriptor, buffer.data, at)
    except EOFError:
        size = os.fstat(descriptor).st_size
        raise DamagedError(
            f"{path} was cut off: it has {size} bytes, and should have {at + nbytes} at least"
        ) from None
    except OSError as error:
        raise DamagedError(f"{path} can't be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return buffer


def hash_slice(path: Path, at: int, nbytes: int) -> str:
    """Return the hash of some bytes of a file, read some at a time.

    Raises:
        DamagedError: The file is missing, or ends before.
    """
    digest = xxhash.xxh3_128()
    for start in range(at, at + nbytes, _CHUNK):
        digest.update(read_slice(path, start, min(_CHUNK, at + nbytes - start)).data)
    return digest.hexdigest()


def _read_into(descriptor: int, buffer: memoryview, at: int) -> None:
    while buffer:
        count = _read_some(descriptor, buffer, at)
        if count == 0:
            raise EOFError
        buffer, at = buffer[count:], at + count


def _read_some(descriptor: int, buffer: memoryview, at: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], at)
    os.lseek(descriptor, at, os.SEEK_SET)  # pragma: no cover - Windows
    found = os.read(descriptor, len(buffer))
    buffer[: len(found)] = found
    return len(found)
