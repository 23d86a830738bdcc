"""Warnings that point at the user's line, not at one of ours."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from visualizer.errors import CaptureWarning

__all__ = ["notify"]

_PACKAGE = f"{Path(__file__).parent.parent}{os.sep}"


def notify(message: str) -> None:
    """Give a `CaptureWarning` at the innermost line that is not the package's."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, CaptureWarning, stacklevel=level)
