"""A capture as one JSON file, for people who read it with what they have: by kind of module."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from visualizer._block.entry import Entry
from visualizer._block.views import CaptureRecord
from visualizer.attention import AttentionMap
from visualizer.errors import ExportTooLargeError, ShapeError, VisualizerError
from visualizer.store.aside import check_free, expanded, written_aside
from visualizer.store.attending import Attending, ModuleCall, with_weights
from visualizer.store.exported import Export, LeftOut
from visualizer.store.json_text import JsonText
from visualizer.store.module_names import CATEGORIES, category_of, pattern_of
from visualizer.store.plain import make_plain

__all__ = ["MAX_JSON_BYTES", "save_json"]

MAX_JSON_BYTES = 50 * 10**6
"""What is written without being asked twice."""

_SHORTEST = {
    "bool": 5,
    **dict.fromkeys(("float16", "bfloat16", "float32", "float64"), 4),
    **dict.fromkeys((f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), 2),
}
"""Bytes that a number takes at least, with its comma: "true,", "0.0,", "0,"."""


def save_json(
    record: CaptureRecord,
    path: str | os.PathLike[str],
    *,
    model: str | None,
    prompt: str | None,
    input_ids: Any,
    attention: bool,
    force: bool,
    overwrite: bool,
) -> Export:
    """Write the modules of a capture and their attention maps to a JSON file.

    Args:
        record: The capture.
        path: The file.
        model: The model's name.
        prompt: The text it was given.
        input_ids: The tokens of that.
        attention: Whether attention maps are written.
        force: However large it becomes.
        overwrite: Replace the file that is there.
    Raises:
        TypeError, ShapeError: A name that is no string, tokens that are no numbers.
        ExportTooLargeError: It would be larger than 50 MB; nothing is left behind.
        StoreExistsError: There is a file.
        StoreWriteError: It can't be written; nothing is left behind.
    """
    if model is not None and not isinstance(model, str):
        raise TypeError(f"model is a {type(model).__name__}; expected its name, as a string")
    target = expanded(path)
    check_free(target, overwrite=overwrite)
    document = _Document(record, attention)
    if not force and document.least_bytes() > MAX_JSON_BYTES:
        least = document.least_bytes(is_certain=True)
        if least > MAX_JSON_BYTES:
            raise ExportTooLargeError(_too_large(str(target), f"at least {least / 10**6:.0f} MB"))
    first = {"model": model or record.model_name, "prompt": prompt, "input_ids": _ids(input_ids)}
    with written_aside(target) as file:
        limit = None if force else MAX_JSON_BYTES
        text = JsonText(file, document.leave_out, limit, _too_large(str(target), "more"))
        document.write(text, first)
    left_out = (*document.left_out, *_locals(record))
    return Export(target, (target,), document.count, target.stat().st_size, left_out)


def _too_large(where: str, size: str) -> str:
    return (
        f"{where} would have {size} as JSON, where the limit is {MAX_JSON_BYTES // 10**6} MB, and "
        f"was not written. captured.save_npz(…) and captured.save(…) take a sixth of that; or "
        f"capture fewer modules; or allow it: force=True"
    )


def _ids(input_ids: Any) -> Any:
    """Return tokens as a list of lists.

    Raises:
        ShapeError: They are no tokens.
    """
    if input_ids is None:
        return None
    parts = input_ids if isinstance(input_ids, list | tuple) else [input_ids]
    try:
        arrays = [np.asarray(part, np.int64) for part in parts]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"input_ids can't be read as numbers: {error}") from error
    if all(array.ndim == 0 for array in arrays):
        return [[int(array) for array in arrays]]
    return [row for array in arrays for row in np.atleast_2d(array).tolist()]


def _locals(record: CaptureRecord) -> list[LeftOut]:
    return [
        LeftOut(f"locals.{function.qualname}.{name}", "locals are not in this format; save_npz")
        for function in record.functions
        for name, site in function.sites.items()
        if site.entries
    ]


class _Document:
    """The document: modules by category, with the calls of each."""

    def __init__(self, record: CaptureRecord, attention: bool) -> None:
        self._outputs, self._inputs = record.outputs(), record.inputs()
        self._attending = Attending(record, attention)
        self._left_out: dict[LeftOut, None] = {}
        self.count = 0
        paths = dict.fromkeys([*self._outputs, *self._inputs, *self._attending.alone])
        self.selected: dict[str, list[str]] = {category: [] for category in CATEGORIES}
        for path in paths:
            category = "attention" if self._attending.attends(path) else category_of(path)
            self.selected[category].append(path)
        self.calls = {path: self._calls(path) for path in paths}
        self.captured = {
            category: [path for path in found if self.calls[path]]
            for category, found in self.selected.items()
        }

    def leave_out(self, name: str, why: str) -> None:
        """Note what is left out; the last call is written twice, and told once."""
        self._left_out[LeftOut(name, why)] = None

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What is not in the document."""
        return tuple(self._left_out)

    def _calls(self, path: str) -> list[ModuleCall]:
        return self._attending.calls(path, self._outputs.get(path, ()), self._inputs.get(path, ()))

    def least_bytes(self, *, is_certain: bool = False) -> int:
        """Return how many bytes it has at least.

        Args:
            is_certain: Look whether the attention maps can be read.
        """
        total = 0
        for call in (call for calls in self.calls.values() for call in calls):
            total += _least(call.output)
            for made in call.maps[:1]:
                if not is_certain or _is_readable(made):
                    total += 4 * math.prod(made.shape)
        return total

    def write(self, text: JsonText, first: dict[str, Any]) -> None:
        """Write all of it."""
        patterns = {
            category: list(dict.fromkeys(map(pattern_of, paths)))
            for category, paths in self.selected.items()
        }
        head = {**first, "selected_patterns": patterns, "selected_modules": self.selected}
        pairs: list[tuple[str, Callable[[], None]]] = [
            (key, lambda key=key, value=value: text.value(value, key))  # type: ignore[misc]
            for key, value in head.items()
        ]
        pairs.append(("captured", lambda: text.fields(self._categories(text))))
        pairs.append(("capture_summary", lambda: text.value(self._summary(), "")))
        text.fields(pairs)
        text.raw("\n")

    def _summary(self) -> dict[str, Any]:
        keys = [path for paths in self.captured.values() for path in paths]
        return {
            "num_modules_selected": sum(map(len, self.selected.values())),
            "num_modules_captured": len(keys),
            **{f"{category}_captured": len(self.captured[category]) for category in CATEGORIES},
            "capture_keys": keys,
        }

    def _categories(self, text: JsonText) -> Iterator[tuple[str, Callable[[], None]]]:
        for category in CATEGORIES:
            modules = [
                (path, lambda path=path: self._module(text, path))
                for path in self.captured[category]
            ]
            yield f"{category}_outputs", lambda modules=modules: text.fields(modules)  # type: ignore[misc]

    def _module(self, text: JsonText, path: str) -> None:
        """Write the last call of a module, and all of them where there are several."""
        calls = self.calls[path]
        self.count += 1
        pairs = self._call(text, path, calls[-1])
        if len(calls) > 1:
            every = [
                lambda call=call: text.fields(
                    [
                        ("call", lambda: text.value(call.number, "")),
                        ("step", lambda: text.value(call.step, "")),
                        *self._call(text, path, call),
                    ]
                )
                for call in calls
            ]
            pairs.append(("calls", lambda: text.items(every)))
        text.fields(pairs)

    def _call(
        self, text: JsonText, path: str, call: ModuleCall
    ) -> list[tuple[str, Callable[[], None]]]:
        place = f"{path and '.'}{path}[{call.number}]"
        name, given = f"modules{place}", f"inputs{place}"

        def output() -> None:
            value = self._plain(call.output, name)
            text.value(with_weights(value, call.maps, name, self.leave_out), name)

        pairs: list[tuple[str, Callable[[], None]]] = [("output", output)]
        if call.input is not None:
            pairs.append(("input", lambda: text.value(self._input(call.input, given), given)))
        return pairs

    def _plain(self, entry: Entry | None, name: str) -> Any:
        if entry is None:
            return None
        try:
            return make_plain(entry.value, name, self.leave_out)
        except VisualizerError as error:
            self.leave_out(name, str(error))
            return None

    def _input(self, entry: Entry | None, name: str) -> Any:
        """Return positional arguments, and behind them a dict of the others, if there are any."""
        value = self._plain(entry, name)
        if not isinstance(value, dict):
            return value
        return [*value["args"], *([value["kwargs"]] if value["kwargs"] else [])]


def _least(entry: Entry | None) -> int:
    if entry is None or entry.shape is None:
        return 0
    return _SHORTEST.get(str(entry.dtype), 0) * math.prod(entry.shape)


def _is_readable(made: AttentionMap) -> bool:
    try:
        made[:1, :1, :1]
    except VisualizerError:
        return False
    return True
