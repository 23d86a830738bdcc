"""Tensors in safetensors files: written whole, read a slice at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, TensorSpec, serialize_file

from visualizer.errors import DamagedError
from visualizer.store.layout import open_file
from visualizer.store.pieces import Piece, hash_of

__all__ = ["Written", "hash_slices", "key_of", "read_slice", "write_shard"]

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
    with _opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size < at + nbytes:  # before there is memory for what a wrong index says
            raise _cut_off(path, size, at + nbytes)
        buffer = np.empty(nbytes, np.uint8)
        try:
            _read_into(descriptor, buffer.data, at)
        except EOFError:
            raise _cut_off(path, os.fstat(descriptor).st_size, at + nbytes) from None
    return buffer


def hash_slices(path: Path, places: Iterable[tuple[int, int]]) -> Iterator[str | None]:
    """Yield the hashes of parts of a file, which is read some megabytes at a time.

    Args:
        path: The file.
        places: Where each part begins, and its size, in bytes.
    Yields:
        None for a part that can't be read.
    Raises:
        DamagedError: The file can't be opened.
    """
    buffer = memoryview(bytearray(_CHUNK))
    with _opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        for at, nbytes in places:
            digest = xxhash.xxh3_128()
            try:
                if size < at + nbytes:
                    raise EOFError
                for start in range(at, at + nbytes, _CHUNK):
                    part = buffer[: min(_CHUNK, at + nbytes - start)]
                    _read_into(descriptor, part, start)
                    digest.update(part)
            except (EOFError, OSError):
                yield None
            else:
                yield digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a shard; what the system says of it is that it is damaged."""
    try:
        descriptor = open_file(path)
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(f"{path} can't be opened: {error.strerror}") from error
    try:
        yield descriptor
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(f"{path} can't be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _cut_off(path: Path, size: int, expected: int) -> DamagedError:
    return DamagedError(
        f"{path} was cut off: it has {size} bytes, and should have {expected} at least"
    )


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
