"""What the figures of a benchmark hold for, and its command line."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from typing import Any

__all__ = ["describe_machine", "positive"]


def describe_machine(*packages: str) -> dict[str, Any]:
    """Return the machine, how busy it was before, and versions of packages that are installed."""
    about: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    for name in packages:
        try:
            about[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            about[name] = None
    if about.get("torch") is not None:
        import torch

        about["torch"] = f"{torch.__version__}, {torch.get_num_threads()} threads"
    return about


def positive(text: str) -> int:
    """Parse a number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number
