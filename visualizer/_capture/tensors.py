"""Tensors to arrays. torch is looked up among the loaded modules, never imported."""

from __future__ import annotations

import importlib
import sys
from contextlib import ExitStack
from enum import Enum
from functools import cache
from types import FrameType, ModuleType
from typing import Any

from visualizer._capture.device_copies import copies

__all__ = [
    "CannotRecordError",
    "Obstacle",
    "copy_narrow",
    "fast_tensor_to_array",
    "find_obstacle",
    "refuse_proxy",
    "tensor_to_array",
]


_TRACED = (
    "it was being traced (torch.export, torch.compile, torch.fx), where nothing has a value; call "
    "the Python model itself"
)


class CannotRecordError(Exception):
    """A value can't be recorded here. The message completes "…, because …"."""


class Obstacle(Enum):
    """Why a call can't be recorded at all."""

    COMPILER = "torch's compiler was reading it"
    BACKWARD = "autograd ran it in a backward pass, as it does to recompute a checkpoint"
    TRACE = (
        "torch.jit.trace was recording it, and copies would become part of the trace; call the "
        "Python model itself"
    )


def find_obstacle() -> Obstacle | None:
    """Say why this call can't be recorded; None for an ordinary one."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    try:
        if torch.compiler.is_dynamo_compiling():
            return Obstacle.COMPILER
        if _may_recompute(torch) and _is_recomputed():
            return Obstacle.BACKWARD
        return Obstacle.TRACE if torch._C._get_tracing_state() is not None else None
    except AttributeError:  # torch is being imported just now
        return None


_RECOMPUTING = frozenset(
    {
        ("torch.autograd.function", "BackwardCFunction.apply"),
        ("torch.autograd.function", "BackwardCFunction.apply_boxed"),
        ("torch.utils.checkpoint", "CheckpointFunction.backward"),
        ("torch.utils.checkpoint", "_checkpoint_hook.__init__.<locals>.unpack_hook"),
    }
)
"""torch's own functions that run parts of a program a second time, or call what does."""
_RECOMPUTATION = "_recomputation_hook."
_ENGINE = frozenset({("torch.autograd.graph", "_engine_run_backward")})


def _may_recompute(torch: ModuleType) -> bool:
    """Tell whether a backward pass runs, or somebody looks at what is saved for one."""
    if torch._C._current_graph_task_id() != -1:
        return True
    find_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    hooks = () if find_hooks is None else find_hooks(True) or ()
    return any(getattr(hook, "__qualname__", "").startswith(_RECOMPUTATION) for hook in hooks)


def _is_recomputed() -> bool:
    """Tell a call that autograd makes again from one that a hook of the program's makes.

    A hook is called by the engine, without a function of torch's between them.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        function = frame.f_globals.get("__name__"), frame.f_code.co_qualname
        if function in _RECOMPUTING:
            return True
        if function in _ENGINE:
            return False
        frame = frame.f_back
    return False


def fast_tensor_to_array(value: Any) -> Any:
    """Return the array of a plain CPU tensor; None for anything that needs a closer look."""
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not getattr(torch, "Tensor", None):
        return None
    if _has_modes(torch) or not value.is_cpu or value.dtype not in _array_types(torch):
        return None
    try:
        return value.numpy(force=True).copy()
    except (RuntimeError, TypeError):  # sparse, nested, wrapped by a functional transform
        return None


def copy_narrow(tensor: Any) -> Any:
    """Return a copy of a plain CPU tensor of bfloat16 or float8, in its type; None of others."""
    torch = sys.modules["torch"]
    is_plain = (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.is_cpu
        and tensor.dtype.is_floating_point
        and tensor.dtype not in _array_types(torch)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not _has_modes(torch)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )
    if not is_plain or tensor.dtype.itemsize > 2:
        return None
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def tensor_to_array(tensor: Any) -> Any:
    """Return any tensor as an array that owns its memory, on the CPU.

    A nested tensor becomes a list of arrays. Without numpy the copy is a tensor.

    Raises:
        CannotRecordError: The tensor has no value of its own at this time.
    """
    torch = sys.modules["torch"]
    with ExitStack() as outside:
        # What is done here is not the program's: nobody who watches that should see it.
        outside.enter_context(torch._C.DisableTorchFunction())
        unwrapped = _unwrap(torch, tensor)
        if torch._C._len_torch_dispatch_stack():
            modes = importlib.import_module("torch.utils._python_dispatch")
            outside.enter_context(modes._disable_current_modes())
        if unwrapped is not tensor:
            transforms = importlib.import_module("torch._functorch.pyfunctorch")
            outside.enter_context(transforms.temporarily_clear_interpreter_stack())
        return _plain_to_array(torch, unwrapped)


def _has_modes(torch: ModuleType) -> bool:
    """Tell whether somebody watches or changes what tensors do (a counter, a default device)."""
    return bool(torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())


def _plain_to_array(torch: ModuleType, tensor: Any) -> Any:
    if tensor.is_nested:
        return [_plain_to_array(torch, part) for part in tensor.unbind()]
    dense = _as_array_type(torch, _dense(torch, tensor.detach()))
    if dense.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            raise CannotRecordError(
                "a CUDA graph was being captured, and copies would become part of it; call the "
                "model without the graph"
            )
        return copies.fetch(torch, dense)
    try:
        return dense.numpy(force=True).copy()
    except RuntimeError as error:
        if "numpy is not available" in str(error).lower():
            return dense.cpu().clone()
        raise


def refuse_proxy(value: Any) -> None:
    """Raise for what torch.fx passes through a function in place of values."""
    proxy = getattr(sys.modules.get("torch.fx"), "Proxy", None)
    if proxy is not None and isinstance(value, proxy):
        raise CannotRecordError(_TRACED)


def _unwrap(torch: ModuleType, tensor: Any) -> Any:
    """Look through functional transforms, and refuse what has no value."""
    if type(tensor).__name__ in {"FakeTensor", "FunctionalTensor"}:
        raise CannotRecordError(_TRACED)
    if torch.nn.parameter.is_lazy(tensor):
        raise CannotRecordError("it is a lazy parameter, which gets its value at the first call")
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise CannotRecordError(
                "it ran under torch.vmap, where a value is a slice of a larger one; call it "
                "without vmap, over a loop or with a batch axis of its own"
            )
        tensor = functorch.get_unwrapped(tensor)
    if tensor.is_meta:
        raise CannotRecordError("its tensors are on the meta device, where they have no values")
    return tensor


def _dense(torch: ModuleType, tensor: Any) -> Any:
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _as_array_type(torch: ModuleType, tensor: Any) -> Any:
    if tensor.dtype in _array_types(torch):
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)


@cache
def _array_types(torch: ModuleType) -> frozenset[Any]:
    """Return the dtypes that numpy has, too."""
    names = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64"
    found = (getattr(torch, name, None) for name in f"{names} complex64 complex128".split())
    return frozenset(dtype for dtype in found if dtype is not None)
