"""torch's tensors of every kind, as pieces and a recipe to put them together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visualizer.attention.unobserved import unobserved
from visualizer.store.arrays import Add, Fetch
from visualizer.store.device import dtype_name, piece_of
from visualizer.store.pieces import NATIVE, Piece

__all__ = ["describe_tensor", "restore_tensor"]

_COMPRESSED = {
    torch.sparse_csr: "sparse_csr",
    torch.sparse_csc: "sparse_csc",
    torch.sparse_bsr: "sparse_bsr",
    torch.sparse_bsc: "sparse_bsc",
}

_QUANTIZED = (torch.qint8, torch.quint8, torch.qint32)
_PACKED = (torch.quint4x2, torch.quint2x4)
"""Quantised types of which several share a byte; torch reads no integers out of them."""


def describe_tensor(tensor: Tensor, add: Add) -> dict[str, Any] | None:
    """Return the recipe of a tensor, without its graph; None where there is none.

    Args:
        tensor: Of any type, layout and device.
        add: Takes its pieces.
    Raises:
        ValueError, RuntimeError, NotImplementedError: It can't be read.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return None  # it stands for others
    with unobserved(tensor.device.type):
        if _is_ordinary(tensor):
            order = _order_in_memory(tensor.shape, tensor.stride())
            if order is not None:
                return _describe_ordinary(tensor, order, add)
        plain = _plain(tensor)
        return None if plain is None else _describe(plain, add)


def _is_ordinary(tensor: Tensor) -> bool:
    """Tell whether a tensor is but memory of the CPU, as most are."""
    return (
        type(tensor) is Tensor
        and torch._C._dispatch_keys(tensor).raw_repr() in _ORDINARY
        and tensor.dtype in _NATIVE
        and not tensor.requires_grad
        and tensor.nbytes > 0
        and tensor.untyped_storage().nbytes()
        >= tensor.storage_offset() * tensor.itemsize + tensor.nbytes
    )


def _ordinary_keys() -> frozenset[int]:
    """Return what torch dispatches by for ordinary tensors, made in inference mode or not."""
    found = []
    for mode in (False, True):
        with torch.inference_mode(mode):
            made = torch.empty(0, device="cpu")
            found.append(torch._C._dispatch_keys(made).raw_repr())
    return frozenset(found)


_ORDINARY = _ordinary_keys()
_NATIVE = {getattr(torch, name): name for name in NATIVE if hasattr(torch, name)}


def _order_in_memory(shape: Sequence[int], strides: Sequence[int]) -> list[int] | None:
    """Return the axes as they lie in memory, the outermost first; None where there are gaps."""
    order = sorted(range(len(shape)), key=lambda axis: -strides[axis])
    step = 1
    for axis in reversed(order):
        if shape[axis] != 1:
            if strides[axis] != step:
                return None
            step *= shape[axis]
    return order


def _describe_ordinary(tensor: Tensor, order: list[int], add: Add) -> dict[str, Any]:
    """Return the recipe of an ordinary tensor, without that torch computes anything.

    With each operation of torch's the interpreter's lock is let go of, and may be somebody else's
    for a while.
    """
    shape, name = _shape(tensor), _NATIVE[tensor.dtype]
    node: dict[str, Any] = {"kind": "tensor", "dtype": name, "shape": shape, "device": "cpu"}
    if order != list(range(len(order))):
        node["order"] = order
    physical = tuple(shape[axis] for axis in order)
    node["stored"] = add(Piece(name, physical, tensor, tensor.data_ptr(), tensor.nbytes))
    return node


def _plain(tensor: Tensor) -> Tensor | None:
    """Return a tensor without its graph and class; None if that class does more than name it."""
    if torch.nn.parameter.is_lazy(tensor) or tensor.dtype in _PACKED:
        return None
    if type(tensor) in (Tensor, torch.nn.Parameter) or tensor.is_nested:
        return _of_memory(tensor.detach())
    if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if hasattr(tensor, "__tensor_flatten__") or type(tensor).__torch_dispatch__ is not (
        Tensor.__torch_dispatch__
    ):
        return None
    return tensor.detach().as_subclass(Tensor)


def _of_memory(tensor: Tensor) -> Tensor:
    """Return a tensor with memory of the usual kind.

    Raises:
        ValueError: It has none.
    """
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    if tensor.layout is torch._mkldnn:  # type: ignore[attr-defined]
        return tensor.to_dense()
    if tensor.is_nested or tensor.is_meta or tensor.layout is not torch.strided:
        return tensor
    if tensor.is_quantized != (tensor.dtype in _QUANTIZED):
        raise ValueError("a quantised type, but neither scale nor zero point")
    places = sum(
        (size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    )
    end = (tensor.storage_offset() + places + 1) * tensor.itemsize
    if tensor.numel() and end > tensor.untyped_storage().nbytes():  # its repr would crash, too
        raise ValueError(f"a tensor of shape {_shape(tensor)} that has lost its memory")
    return tensor


def _describe(tensor: Tensor, add: Add) -> dict[str, Any]:
    if tensor.is_nested:
        return _describe_nested(tensor, add)
    facts = {"kind": "tensor", "dtype": dtype_name(tensor.dtype), "shape": _shape(tensor)}
    if tensor.is_meta:
        return {**facts, "as": "meta"}
    facts["device"] = str(tensor.device)
    for holds, describe in _KINDS:
        if holds(tensor):
            return {**facts, **describe(tensor, add)}
    return {**facts, **_describe_dense(tensor, add)}


def _describe_nested(tensor: Tensor, add: Add) -> dict[str, Any]:
    return {
        "kind": "tensor",
        "as": "nested",
        "dtype": dtype_name(tensor.dtype),
        "layout": "jagged" if tensor.layout is torch.jagged else "strided",
        "items": [_describe(item.detach(), add) for item in tensor.unbind()],
    }


def _describe_sparse(tensor: Tensor, add: Add) -> dict[str, Any]:
    return {
        "as": "sparse_coo",
        "indices": _describe(tensor._indices(), add),
        "values": _describe(tensor._values(), add),
        "is_coalesced": tensor.is_coalesced(),
    }


def _describe_compressed(tensor: Tensor, add: Add) -> dict[str, Any]:
    by_row = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    compressed = tensor.crow_indices() if by_row else tensor.ccol_indices()
    plain = tensor.col_indices() if by_row else tensor.row_indices()
    return {
        "as": _COMPRESSED[tensor.layout],
        "compressed": _describe(compressed, add),
        "plain": _describe(plain, add),
        "values": _describe(tensor.values().detach(), add),
    }


def _describe_quantized(tensor: Tensor, add: Add) -> dict[str, Any]:
    facts = {"as": "quantized", "integers": _describe(tensor.int_repr(), add)}
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return {**facts, "scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    return {
        **facts,
        "scale": _describe(tensor.q_per_channel_scales(), add),
        "zero_point": _describe(tensor.q_per_channel_zero_points(), add),
        "axis": tensor.q_per_channel_axis(),
    }


_KINDS: tuple[tuple[Callable[[Tensor], bool], Callable[[Tensor, Add], dict[str, Any]]], ...] = (
    (lambda tensor: tensor.is_quantized, _describe_quantized),
    (lambda tensor: tensor.layout is torch.sparse_coo, _describe_sparse),
    (lambda tensor: tensor.layout in _COMPRESSED, _describe_compressed),
)


def _describe_dense(tensor: Tensor, add: Add) -> dict[str, Any]:
    tensor = tensor.resolve_conj().resolve_neg()
    node: dict[str, Any] = {}
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:  # the same values along an axis are there once
            tensor = tensor.narrow(axis, 0, 1)
            node["expanded"] = True
    if node:
        node["single"] = _shape(tensor)
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda axis: -int(strides[axis]))
    if order != list(range(tensor.ndim)):
        node["order"] = order
    dense = tensor.permute(order).contiguous()
    if dense.dtype in (torch.complex128, torch.complex32):
        node["as"], dense = "parts", torch.view_as_real(dense)
    elif dtype_name(dense.dtype) not in NATIVE:
        node["as"], dense = "bytes", dense.reshape(-1).view(torch.uint8)
    node["stored"] = add(piece_of(dense)) if dense.numel() else None
    return node


def restore_tensor(node: Mapping[str, Any], fetch: Fetch) -> Tensor:
    """Return the tensor of a recipe, on the CPU.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError, AttributeError: No recipe of ours.
        DamagedError: Its bytes are not what was written.
    """
    with unobserved():
        return _restore(node, fetch)


def _restore(node: Mapping[str, Any], fetch: Fetch) -> Tensor:
    how, dtype = node.get("as"), _read_dtype(node["dtype"])
    if how == "nested":
        items = [_restore(item, fetch) for item in node["items"]]
        layout = torch.jagged if node["layout"] == "jagged" else torch.strided
        return torch.nested.nested_tensor(items, dtype=dtype, layout=layout)
    if how == "meta":
        return torch.empty(node["shape"], dtype=dtype, device="meta")
    if how == "quantized":
        return _restore_quantized(node, fetch)
    if how is not None and how.startswith("sparse"):
        return _restore_sparse(node, fetch)
    return _restore_dense(node, dtype, fetch)


def _restore_dense(node: Mapping[str, Any], dtype: torch.dtype, fetch: Fetch) -> Tensor:
    shape = node.get("single", node["shape"])
    if any(size < 0 for size in (*shape, *node["shape"])):
        raise ValueError(f"the shape {node['shape']}")
    order = node.get("order", list(range(len(shape))))
    physical = [shape[axis] for axis in order]
    if node["stored"] is None:
        flat = torch.empty(0, dtype=dtype)
    else:
        flat = torch.from_numpy(fetch(node["stored"])).view(dtype)
    dense = flat.reshape(physical)
    back = sorted(range(len(order)), key=order.__getitem__)
    return dense.permute(back).expand(node["shape"])


def _restore_sparse(node: Mapping[str, Any], fetch: Fetch) -> Tensor:
    """Return a sparse tensor; torch checks that its indices lie within it."""
    values, size = _restore(node["values"], fetch), node["shape"]
    if node["as"] == "sparse_coo":
        indices = _restore(node["indices"], fetch)
        made = torch.sparse_coo_tensor(indices, values, size, check_invariants=True)
        return made._coalesced_(node["is_coalesced"])
    return torch.sparse_compressed_tensor(
        _restore(node["compressed"], fetch),
        _restore(node["plain"], fetch),
        values,
        size,
        layout=next(layout for layout, name in _COMPRESSED.items() if name == node["as"]),
        check_invariants=True,
    )


def _restore_quantized(node: Mapping[str, Any], fetch: Fetch) -> Tensor:
    integers = _restore(node["integers"], fetch)
    if "axis" not in node:
        return torch._make_per_tensor_quantized_tensor(integers, node["scale"], node["zero_point"])
    scales, points = (_restore(node[name], fetch) for name in ("scale", "zero_point"))
    axis = node["axis"]
    if not (0 <= axis < integers.ndim) or {*scales.shape, *points.shape} != {integers.shape[axis]}:
        raise ValueError(f"scales of shape {_shape(scales)} along axis {axis}")
    return torch._make_per_channel_quantized_tensor(integers, scales, points, axis)


def _read_dtype(name: str) -> torch.dtype:
    dtype = vars(torch).get(name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no type of tensors")
    return dtype


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
