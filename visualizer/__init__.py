"""Take values out of running model code, without editing that code.

Importing this loads neither torch nor numpy, writes nothing and patches nothing; what is named
here is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visualizer._capture.get_local import get_local as get_local
    from visualizer._capture.snapshot import Reference as Reference

__version__ = "0.1.0"
__all__ = ["Reference", "__version__", "get_local"]

_HOMES = {
    "Reference": "visualizer._capture.snapshot",
    "get_local": "visualizer._capture.get_local",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'visualizer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
