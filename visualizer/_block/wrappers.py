"""What stands around a model or its modules: it has no part in their paths."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

__all__ = ["Spot", "innermost", "is_replica", "spots", "wrappers_to_watch"]

_NAMES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and `checkpoint_wrapper` call the one child of their wrappers."""
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
"""They call theirs "module", as other models may call one of their own."""


class Spot(NamedTuple):
    """Where a module is.

    Attributes:
        raw: As `named_modules()` has it.
        path: Without what wrappers put into it.
    """

    raw: str
    path: str


def spots(model: nn.Module) -> Iterator[tuple[Spot, nn.Module]]:
    """Yield a model's modules. A wrapper comes before what it wraps, at the same path."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for raw, module in model.named_modules():
        path = raw
        above, _, name = raw.rpartition(".")
        if raw and above in found:  # setattr() takes names with dots in them
            above_path, parent = found[above]
            if _is_passed(parent, name):
                path = above_path
            else:
                path = f"{above_path}.{name}" if above_path else name
        found[raw] = path, module
        yield Spot(raw, path), module


def innermost(module: nn.Module) -> nn.Module:
    """Return what is within all wrappers."""
    while True:
        children: Any = vars(module).get("_modules") or {}
        name = next(iter(children)) if len(children) == 1 else None
        if name is None or not _is_passed(module, name):
            return module
        module = children[name]


def _is_passed(parent: nn.Module, name: str) -> bool:
    return name in _NAMES or (name == "module" and isinstance(parent, _PARALLEL))


def is_replica(module: nn.Module) -> bool:
    """Tell whether a module was made by DataParallel, for one of its threads."""
    return bool(vars(module).get("_is_replica"))


def wrappers_to_watch() -> tuple[type, ...]:
    """Return the wrappers whose own calls must be seen.

    DataParallel calls replicas, each in a thread of its own. torch.compile's wrapper calls what it
    looked up when it was made: a `__call__` that is replaced later is not noticed.
    """
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    compiled = getattr(compiler, "OptimizedModule", None)
    return (nn.DataParallel,) if compiled is None else (nn.DataParallel, compiled)
