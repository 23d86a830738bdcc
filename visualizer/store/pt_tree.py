"""A capture as a tree of `.pt` files: `<base>/<identifier>/[step_<n>/]layer_<i>/<var>.pt`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visualizer._block.entry import Entry
from visualizer._block.views import CaptureRecord
from visualizer.attention.unobserved import unobserved
from visualizer.errors import StoreWriteError
from visualizer.store.aside import check_free, expanded, written_aside
from visualizer.store.contents import Item, items_of, read_plain
from visualizer.store.exported import Export, LeftOut
from visualizer.store.module_names import layer_of, pattern_of
from visualizer.store.plain import OMITTED, LeaveOut
from visualizer.store.safe_names import Names, check_folder_name

__all__ = ["save_tree"]

_ATTENTION = "attn_weight"
_NAMES = "names.json"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value belongs.

    Attributes:
        folder: The names of its folders, beneath the identifier's.
        short: Its name there, if that is only one's.
        full: Its name else.
        is_local: Whether it is a local, which keeps its name before others do.
        stack: The path of the layers it is one of, as "encoder.layers."; None for locals, and
            outside of layers.
    """

    folder: tuple[str, ...]
    short: str
    full: str
    is_local: bool = False
    stack: str | None = None


def save_tree(
    record: CaptureRecord,
    base: str | os.PathLike[str],
    identifier: str,
    *,
    steps: bool | None,
    attention: bool,
    max_map_bytes: int,
    overwrite: bool,
) -> Export:
    """Write a capture as a tree of `.pt` files.

    Args:
        record: The capture.
        base: The folder that the tree is in.
        identifier: The name of the tree's own folder.
        steps: Whether there are folders for steps; None is where there are several steps.
        attention: Whether attention maps are written.
        max_map_bytes: How large one may be.
        overwrite: Replace files that are there.
    Raises:
        OutOfRangeError: The identifier is not the name of one folder.
        StoreExistsError: A file is there already; nothing was written.
        StoreWriteError: A file can't be written; those before it are there.
    """
    check_folder_name(identifier, "identifier")
    root = expanded(base) / identifier
    items = items_of(record, attention=attention)
    places = _places(items, record.spec.get("modules", ()), steps)
    files, renamed = _file_names(items, places)
    for name in files:
        check_free(root / name, overwrite=overwrite)
    known = _known_names(root / _NAMES, overwrite=overwrite) if renamed else {}
    left_out: list[LeftOut] = []
    written: dict[str, Path] = {}
    for item, name in zip(items, files, strict=True):
        tree = _to_torch(item, lambda *what: left_out.append(LeftOut(*what)), max_map_bytes)
        if tree is not OMITTED:
            _write(root / name, tree)
            written[name] = root / name
    paths = list(written.values())
    changed = {name: facts for name, facts in renamed.items() if name in written}
    if changed:
        with written_aside(root / _NAMES) as file:
            file.write(json.dumps(known | changed, indent=1).encode())
        paths.append(root / _NAMES)
    nbytes = sum(path.stat().st_size for path in paths)
    return Export(root, tuple(paths), len(written), nbytes, tuple(left_out))


def _places(items: Sequence[Item], patterns: Iterable[str], steps: bool | None) -> list[_Place]:
    """Return where the values belong."""
    if steps is None:
        steps = len({item.source.step for item in items} - {None}) > 1
    known = list(patterns)
    return [_place(item, known, steps) for item in items]


def _place(item: Item, patterns: Sequence[str], steps: bool) -> _Place:
    source = item.source
    path = source.module_path
    found = None if path is None else layer_of(path, patterns)
    layer, rest = found if found is not None else (None, path or "model")
    if layer is None and item.kind in ("local", "attention"):
        layer = source.layer
    folder = [] if source.step is None or not steps else [f"step_{source.step}"]
    folder += [] if layer is None else [f"layer_{layer}"]
    whole = path or ("model" if path == "" else "")
    if isinstance(source, Entry) and item.kind == "local":
        function = item.key.removeprefix("locals.")
        return _Place(tuple(folder), str(source.variable), f"{whole}.{function}".strip("."), True)
    stack = None if found is None else pattern_of(str(path)).partition("{layer}")[0]
    if item.kind == "attention":
        full = f"{whole}.{_ATTENTION}".strip(".")
        return _Place(tuple(folder), _ATTENTION, full, stack=stack)
    ending = ".input" if item.kind == "input" else ""
    return _Place(tuple(folder), f"{rest}{ending}", f"{whole}{ending}", stack=stack)


def _file_names(
    items: Sequence[Item], places: Sequence[_Place]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the file of each value, and of those whose name was changed what they are.

    Where a short name in one folder would be that of several modules or functions, all that have
    it get their full one, in every folder; but for a local, beside which modules get theirs. So do
    all modules where they are of several stacks, as of an encoder and a decoder. Several calls in
    one folder are numbered.
    """
    wanted = [(place.folder, name) for place, name in zip(places, _names(places), strict=True)]
    counts, numbers = Counter(wanted), Counter[Any]()
    taken: dict[tuple[str, ...], Names] = {}
    files, renamed = [], {}
    for item, place, (folder, name) in zip(items, places, wanted, strict=True):
        plain = name
        if counts[folder, name] > 1:
            numbers[folder, name] += 1
            name = f"{name}.call_{numbers[folder, plain] - 1}"
        made = taken.setdefault(folder, Names()).take(name)
        file = "/".join((*folder, f"{made}.pt"))
        files.append(file)
        if made != place.short:
            renamed[file] = {"name": plain, **item.facts}
    return files, renamed


def _names(places: Sequence[_Place]) -> list[str]:
    """Return the names of the files, but for the calls' numbers."""
    shared = _shared(places)
    is_mixed = len({place.stack for place in places} - {None}) > 1
    return [
        place.full
        if (place.short, place.is_local) in shared or (is_mixed and place.stack is not None)
        else place.short
        for place in places
    ]


def _shared(places: Iterable[_Place]) -> set[tuple[str, bool]]:
    """Return the short names that would mean several things in one folder, and of what kind."""
    known = list(places)
    taken = {place.short for place in known if place.is_local}
    found = {(short, False) for short in taken}
    meanings: dict[Any, str] = {}
    for place in known:
        key = place.folder, place.short, place.is_local
        if meanings.setdefault(key, place.full) != place.full:
            found.add((place.short, place.is_local))
    return found


def _known_names(path: Path, *, overwrite: bool) -> dict[str, Any]:
    """Return what an earlier export wrote of its names; others' files are not touched."""
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        pass
    check_free(path, overwrite=overwrite)
    return {}


def _write(path: Path, tree: Any) -> None:
    with unobserved(), written_aside(path) as file:
        try:
            torch.save(tree, file)
        except RuntimeError as error:  # how torch passes on what the file raised
            raise StoreWriteError(f"{path} can't be written: {error}") from error


def _to_torch(item: Item, leave_out: LeaveOut, max_bytes: int) -> Any:
    """Return a value as `torch.load(weights_only=True)` reads it."""
    tree = read_plain(item, leave_out, max_bytes=max_bytes)
    if tree is OMITTED:
        return OMITTED
    dtype = item.source.dtype if isinstance(item.source, Entry) else None
    with unobserved():
        return _convert(tree, dtype, item.name, leave_out)


def _convert(tree: Any, dtype: str | None, name: str, leave_out: LeaveOut) -> Any:
    if isinstance(tree, np.ndarray | np.generic):
        return _to_tensor(np.asarray(tree), dtype, name, leave_out)
    if isinstance(tree, list | tuple):
        made = [_convert(item, None, f"{name}[{n}]", leave_out) for n, item in enumerate(tree)]
        return type(tree)(None if item is OMITTED else item for item in made)
    if isinstance(tree, Mapping):
        pairs = [
            (key, _convert(item, None, f"{name}[{key!r}]", leave_out)) for key, item in tree.items()
        ]
        return {key: item for key, item in pairs if item is not OMITTED}
    return tree


def _to_tensor(array: NDArray[Any], dtype: str | None, name: str, leave_out: LeaveOut) -> Any:
    """Return an array as a tensor of its own memory, of the type that it had in the program."""
    if array.dtype.kind == "U":
        return array.tolist()
    native = array.dtype.newbyteorder("=")
    if native.kind not in "biufc" or native.itemsize > (16 if native.kind == "c" else 8):
        leave_out(name, f"an array of {array.dtype}, which torch does not have")
        return OMITTED
    tensor = torch.from_numpy(np.array(array, dtype=native, order="C"))
    return _narrowed(tensor, dtype)


def _narrowed(tensor: Tensor, dtype: str | None) -> Tensor:
    """Return a tensor in the type it had, where numpy has a wider one for that."""
    wanted = getattr(torch, dtype or "", None)
    if not isinstance(wanted, torch.dtype) or wanted == tensor.dtype:
        return tensor
    if wanted.is_complex != tensor.is_complex() or wanted.is_floating_point != (
        tensor.is_floating_point()
    ):
        return tensor
    try:
        made = tensor.to(wanted)
        back = made.to(tensor.dtype)
    except (RuntimeError, NotImplementedError):  # a type that values can't be converted to
        return tensor
    same = (back == tensor) | (back.isnan() & tensor.isnan())
    return made if bool(same.all()) else tensor
