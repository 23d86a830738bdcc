"""One captured value, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from visualizer._printable import printable

__all__ = ["Entry", "ModuleInputs"]


class ModuleInputs(NamedTuple):
    """What a module was called with.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One value that was captured.

    Attributes:
        kind: "local", "output" or "input".
        function: The function's `module:qualname`; None for modules.
        variable: The local's name; None for modules.
        module_path: Path of the module that ran, as `named_modules()` has it; "" is the model
            itself, None is outside of any module.
        layer: Index of the layer: what `{layer}` stood for in the pattern, or else the place of
            the module in order of first appearance.
        call: Which call of the module or function it was, from 0.
        step: Which forward of the root model it was, from 0; None outside of one.
        shape: The value's shape; None for what is no single array.
        dtype: The type it had in the program, as "bfloat16"; None for what is no single array.
        type_name: What the value is, as "ndarray" or "tuple".
        nbytes: Bytes of the arrays in it.
        read: Returns the value.
    """

    kind: str
    function: str | None
    variable: str | None
    module_path: str | None
    layer: int | None
    call: int
    step: int | None
    shape: tuple[int, ...] | None
    dtype: str | None
    type_name: str
    nbytes: int
    read: Callable[[], Any] = field(repr=False)

    @property
    def value(self) -> Any:
        """An array, or numbers, lists, tuples and dicts of them, as `get_local` gives them.

        That of a capture that was loaded is read from the disk each time.
        """
        return self.read()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        value = self.value
        array = np.asarray(value, dtype=dtype)
        return array.copy() if copy and array is value else array

    def __repr__(self) -> str:
        what = self.variable if self.kind == "local" else self.kind
        where = self.module_path if self.module_path else self.function or "the model"
        size = "" if self.shape is None else f" {self.dtype}{list(self.shape)}"
        return printable(f"<{what} of {where}, call {self.call}:{size or f' {self.type_name}'}>")
