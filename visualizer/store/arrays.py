"""numpy's arrays, as pieces and a recipe to put them together again."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visualizer._capture.snapshot import Narrow
from visualizer.store.device import dtype_name, piece_of
from visualizer.store.pieces import NATIVE, Piece

__all__ = ["Fetch", "describe_array", "restore_array"]

Fetch = Callable[[Mapping[str, Any]], NDArray[np.uint8]]
"""Returns the bytes that a reference leads to."""
Add = Callable[[Piece], Any]
"""Has a piece written, and returns a reference to it."""

_FIRST, _CHUNK = 2**8, 2**18
_NARROW = frozenset(name for name in NATIVE if name.startswith(("bfloat16", "float8")))
_UPPER_HALF = 1 if sys.byteorder == "little" else 0


def describe_array(array: NDArray[Any], add: Add) -> dict[str, Any] | None:
    """Return the recipe of an array without objects in it; None where there is none.

    Args:
        array: Of any type and layout.
        add: Takes its pieces.
    """
    dtype, name = array.dtype, _name(array.dtype)
    if dtype.hasobject:
        return None
    if dtype.kind == "V" and dtype.names is None and not name.startswith("void"):
        array = array.astype(np.float32)  # bfloat16 of ml_dtypes, as get_local has it
        dtype, name = array.dtype, _name(array.dtype)
    order, dense = _dense(array)
    node: dict[str, Any] = {"kind": "array", "dtype": name, "shape": list(array.shape)}
    if order is not None:
        node["order"] = order
    if dtype.kind == "c" and dtype.itemsize == 16 and dtype.isnative:
        node["as"], dense, name = "parts", dense.reshape(-1).view(np.float64), "float64"
    elif not (dtype.isnative and name in NATIVE):
        node["as"], node["dtype"] = "bytes", _write_dtype(dtype)
        dense, name = np.frombuffer(dense.tobytes(), np.uint8), "uint8"
    elif name == "float32" and _fits_bfloat16(dense):
        node["as"] = name = "bfloat16"
        halves = dense.reshape(-1).view(np.uint16)[_UPPER_HALF::2].copy()
        dense = halves.reshape(dense.shape)
    node["stored"] = add(Piece.of_array(dense, name)) if dense.nbytes else None
    return node


@functools.lru_cache(256)
def _name(dtype: np.dtype[Any]) -> str:
    """Return numpy's name of a type, which it puts together each time."""
    return dtype.name


def describe_narrow(narrow: Narrow, add: Add) -> dict[str, Any]:
    """Return the recipe of an array that was not made yet, of what it is made from."""
    tensor = narrow.tensor
    return {
        "kind": "array",
        "dtype": "float32",
        "shape": list(narrow.shape),
        "as": dtype_name(tensor.dtype),
        "stored": add(piece_of(tensor)) if tensor.numel() else None,
    }


def restore_array(node: Mapping[str, Any], fetch: Fetch) -> NDArray[Any]:
    """Return the array of a recipe; it owns its memory.

    Raises:
        ValueError, TypeError, KeyError: No recipe of ours.
        DamagedError: Its bytes are not what was written.
    """
    shape, order, how = tuple(node["shape"]), node.get("order"), node.get("as")
    dtype = _read_dtype(node["dtype"])
    stored = node["stored"]
    if any(size < 0 for size in shape):
        raise ValueError(f"the shape {shape}")
    raw = np.empty(0, np.uint8) if stored is None else fetch(stored)
    if dtype.itemsize == 0:
        return np.ndarray(shape, dtype, buffer=b"")
    if how in _NARROW:
        raw = torch.from_numpy(raw).view(getattr(torch, how)).float().numpy().view(np.uint8)
    flat = raw.view(dtype)
    if order is None:
        return flat.reshape(shape)
    return flat.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def _dense(array: NDArray[Any]) -> tuple[list[int] | None, NDArray[Any]]:
    """Return an array as it lies in memory, and the order of axes that this is."""
    if array.flags.c_contiguous:
        return None, array
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    turned = array.transpose(order)
    if turned.flags.c_contiguous:
        return order, turned
    return None, np.ascontiguousarray(array)


def _fits_bfloat16(dense: NDArray[Any]) -> bool:
    """Tell whether all values are ones of bfloat16, as they are where it was widened."""
    bits = dense.reshape(-1).view(np.uint32)
    starts = (0, *range(_FIRST, bits.size, _CHUNK))
    ends = (_FIRST, *(start + _CHUNK for start in starts[1:]))
    return bits.size > 0 and not any(
        np.bitwise_or.reduce(bits[start:end]) & np.uint32(0xFFFF)
        for start, end in zip(starts, ends, strict=True)
    )


def _write_dtype(dtype: np.dtype[Any]) -> Any:
    """Return a type as JSON can hold it: its name, or its fields with their places."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _write_dtype(base), "shape": list(shape)}
    if dtype.names is None:
        return dtype.str
    facts = [dtype.fields[name] for name in dtype.names] if dtype.fields is not None else []
    return {
        "names": list(dtype.names),
        "formats": [_write_dtype(fact[0]) for fact in facts],
        "offsets": [fact[1] for fact in facts],
        "titles": [fact[2] if len(fact) > 2 else None for fact in facts],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


def _read_dtype(written: Any) -> np.dtype[Any]:
    """Return a type as `_write_dtype` wrote it."""
    if isinstance(written, str):
        dtype = np.dtype(written)
    elif "base" in written:
        dtype = np.dtype((_read_dtype(written["base"]), tuple(written["shape"])))
    else:
        fields: Any = {**written, "formats": [_read_dtype(each) for each in written["formats"]]}
        dtype = np.dtype(fields)
    if dtype.hasobject:
        raise ValueError("arrays of objects are not stored as bytes")
    return dtype
