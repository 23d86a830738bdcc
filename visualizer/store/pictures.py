"""The picture of a capture's annotations, so that it can be drawn where its file is not."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["pack_picture", "unpack_picture"]

_LARGEST_FILE = 64 * 2**20


def pack_picture(picture: Any) -> Any:
    """Return a picture as a value that a store can hold: a file's bytes, pixels, or an array.

    Args:
        picture: A path, a PIL image, or an array. A path without a readable file stays a path.
    """
    if isinstance(picture, str | os.PathLike):
        path = Path(picture).expanduser()
        try:
            if path.is_file() and path.stat().st_size <= _LARGEST_FILE:
                return {"path": str(picture), "file": path.read_bytes()}
        except OSError:
            pass
        return {"path": str(picture)}
    if isinstance(picture, Image.Image):
        pixels = picture.tobytes()  # which loads it: only then it has its palette
        palette = picture.palette if picture.mode in ("P", "PA") else None
        return {
            "mode": picture.mode,
            "size": tuple(picture.size),
            "pixels": pixels,
            "palette": None if palette is None else picture.getpalette(palette.mode),
            "palette_mode": None if palette is None else palette.mode,
            "transparency": picture.info.get("transparency"),
        }
    return picture


def unpack_picture(packed: Any) -> Any:
    """Return the picture: of a file its PIL image, without one that Pillow reads its path."""
    if not isinstance(packed, dict):
        return packed
    if "file" in packed:
        try:
            return Image.open(io.BytesIO(packed["file"]))
        except Exception:  # no picture, or one that is too large to be opened unasked
            return packed["path"]
    if "path" in packed:
        return packed["path"]
    made = Image.frombytes(packed["mode"], packed["size"], packed["pixels"])
    if packed["palette"] is not None:
        made.putpalette(packed["palette"], packed["palette_mode"])
    if packed["transparency"] is not None:
        made.info["transparency"] = packed["transparency"]
    return made
