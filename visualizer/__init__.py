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
    from visualizer.attention import AttentionMap as AttentionMap
    from visualizer.capturing import capture as capture
    from visualizer.capturing import load as load
    from visualizer.plot import cls_padding as cls_padding
    from visualizer.plot import gray2rgb as gray2rgb
    from visualizer.plot import grid_show as grid_show
    from visualizer.plot import highlight_grid as highlight_grid
    from visualizer.plot import visualize_grid_to_grid as visualize_grid_to_grid
    from visualizer.plot import visualize_grid_to_grid_with_cls as visualize_grid_to_grid_with_cls
    from visualizer.plot import visualize_head as visualize_head
    from visualizer.plot import visualize_heads as visualize_heads
    from visualizer.store.verify import verify as verify

__version__ = "0.1.0"
__all__ = [
    "AttentionMap",
    "Reference",
    "__version__",
    "capture",
    "cls_padding",
    "get_local",
    "gray2rgb",
    "grid_show",
    "highlight_grid",
    "load",
    "verify",
    "visualize_grid_to_grid",
    "visualize_grid_to_grid_with_cls",
    "visualize_head",
    "visualize_heads",
]

_HOMES = {
    "AttentionMap": "visualizer.attention",
    "Reference": "visualizer._capture.snapshot",
    "capture": "visualizer.capturing",
    "load": "visualizer.capturing",
    "verify": "visualizer.store.verify",
    "get_local": "visualizer._capture.get_local",
    "cls_padding": "visualizer.plot",
    "gray2rgb": "visualizer.plot",
    "grid_show": "visualizer.plot",
    "highlight_grid": "visualizer.plot",
    "visualize_grid_to_grid": "visualizer.plot",
    "visualize_grid_to_grid_with_cls": "visualizer.plot",
    "visualize_head": "visualizer.plot",
    "visualize_heads": "visualizer.plot",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'visualizer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
