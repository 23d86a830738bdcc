"""Where a map comes from, and what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from visualizer.attention.call import AttentionCall
from visualizer.attention.joined import Joined
from visualizer.attention.picks import Shape
from visualizer.attention.unobserved import unobserved
from visualizer.errors import NoGradientError, NotWeightsError, ShapeError

if TYPE_CHECKING:
    from visualizer.attention.gradient import OutputGradient

__all__ = [
    "ArrayRecord",
    "MapRecord",
    "Source",
    "device_of",
    "dtype_of",
    "read_intact",
    "to_gradient",
    "to_weights",
]

Source = AttentionCall | Tensor | Joined
"""What a map is computed from: a call, the weights, shape `(batch, head, query, key)`, or several
of these, which have its rows."""

_ROUNDING = 0.02
"""How far a row's sum may be from 1: what the rounding of bfloat16 and float16 adds up to."""

_CHECKED_BYTES = 16 * 2**20


def device_of(source: Source | OutputGradient) -> torch.device:
    """Return where a map is computed."""
    return source.device


def dtype_of(source: Source | OutputGradient) -> torch.dtype:
    """Return the type that is computed in: float64 for what is float64, else float32."""
    return torch.float64 if source.dtype == torch.float64 else torch.float32


class MapRecord(Protocol):
    """What an `AttentionMap` reads from, and what is known about it.

    Attributes:
        shape: Sizes of batch, head, query, key.
        module_path: Of the module that called, or None.
        layer: Its index, in order of first appearance, or None.
        call: Index of the call, of this module.
        step: Index of the root model's forward, or None.
        source: How the call was seen: `"sdpa"`, `"eager"`, `"softmax"`, `"array"` and so on.
        is_causal: Whether queries see no key behind their own place; None is not known.
        confirmed: Whether the map was found to agree with the model's own output; None where that
            was not or cannot be checked.
    """

    @property
    def shape(self) -> Shape: ...
    @property
    def module_path(self) -> str | None: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def call(self) -> int: ...
    @property
    def step(self) -> int | None: ...
    @property
    def source(self) -> str: ...
    @property
    def is_causal(self) -> bool | None: ...
    @property
    def confirmed(self) -> bool | None: ...

    def read(self) -> Source:
        """Return the call, or the weights, or what joins several of these.

        Raises:
            MapRefusedError: The map can't be rebuilt exactly.
            OverwrittenError: A tensor was written to since.
        """
        ...

    def read_gradient(self) -> OutputGradient | Tensor:
        """Return what the gradient of the map is computed from, or itself.

        Raises:
            NoGradientError: There is none.
            OverwrittenError: A tensor was written to since.
        """
        ...


def read_intact(record: MapRecord) -> Source:
    """Return what a map is computed from, as it was at the call.

    Raises:
        MapRefusedError: The map can't be rebuilt exactly.
        OverwrittenError: A tensor was written to since.
    """
    source = record.read()
    if isinstance(source, AttentionCall):
        source.check_intact()
    return source


@dataclass(frozen=True, slots=True, eq=False)
class ArrayRecord:
    """A map whose weights are there already, and perhaps their gradient."""

    weights: Tensor
    gradient: Tensor | None = None
    module_path: str | None = None
    layer: int | None = None
    call: int = 0
    step: int | None = None
    source: str = "array"
    is_causal: bool | None = None
    confirmed: bool | None = None

    @property
    def shape(self) -> Shape:
        """Sizes of batch, head, query, key."""
        batch, head, query, key = self.weights.shape
        return batch, head, query, key

    def read(self) -> Tensor:
        """Return the weights."""
        return self.weights

    def read_gradient(self) -> Tensor:
        """Return the gradient."""
        if self.gradient is None:
            raise NoGradientError(
                "the attention map was made of weights alone, so it has no gradient; give both: "
                "AttentionMap.from_weights(array, gradient=…)"
            )
        return self.gradient


def to_weights(values: Any) -> Tensor:
    """Return an array or a tensor as weights, shape `(batch, head, query, key)`; not copied.

    Raises:
        ShapeError: Another number of axes than 2 to 4, or none of a size above zero.
        NotWeightsError: Negative or not finite values, or rows that don't sum to 1.
    """
    tensor = values.detach() if isinstance(values, Tensor) else _from_array(values, "weights")
    if not 2 <= tensor.ndim <= 4 or 0 in tensor.shape:
        raise ShapeError(
            f"weights have shape {tuple(tensor.shape)}; expected (query, key), (head, query, key) "
            f"or (batch, head, query, key), none empty"
        )
    tensor = tensor[(None,) * (4 - tensor.ndim)]
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    with unobserved(tensor.device.type):
        _check_weights(tensor)
    return tensor


def to_gradient(values: Any, weights: Tensor) -> Tensor:
    """Return the gradient of weights as a tensor, shape `(batch, head, query, key)`; not copied.

    Raises:
        ShapeError: Another shape than the weights have.
    """
    tensor = values.detach() if isinstance(values, Tensor) else _from_array(values, "gradient")
    tensor = tensor[(None,) * max(0, 4 - tensor.ndim)]
    if tensor.shape != weights.shape:
        raise ShapeError(
            f"the gradient has shape {tuple(tensor.shape)} and the weights {tuple(weights.shape)}; "
            f"expected a number for each weight"
        )
    return tensor.to(weights.device, weights.dtype)


def _from_array(values: Any, name: str) -> Tensor:
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biufV":  # V: numpy's name for extension types, as bfloat16
            raise TypeError(f"its type is {array.dtype}")
        kept = array.dtype.kind == "f" and array.dtype.itemsize in (2, 4, 8)
        type_ = array.dtype.newbyteorder("=") if kept else np.dtype(np.float32)
        array = np.ascontiguousarray(array, dtype=type_).reshape(array.shape)
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"{name} can't be made an array: {str(error).rstrip('.')}. Expected a tensor, an "
            f"array, or lists of equal lengths"
        ) from error
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _check_weights(tensor: Tensor) -> None:
    """Go through the rows in blocks."""
    batch, heads, queries, keys = tensor.shape
    step = max(1, _CHECKED_BYTES // (keys * 4))
    for item in range(batch):
        for head in range(heads):
            for start in range(0, queries, step):
                rows = tensor[item, head, start : start + step]
                _check_rows(rows, tuple(tensor.shape), f"{item}, {head}, {{}}", start)


def _check_rows(rows: Tensor, shape: tuple[int, ...], place: str, start: int) -> None:
    rows = rows if rows.dtype == torch.float64 else rows.to(torch.float32)
    lowest, highest = (float(value) for value in torch.aminmax(rows))
    if not np.isfinite(lowest) or not np.isfinite(highest):
        bad = int((~torch.isfinite(rows)).any(-1).int().argmax())
        raise NotWeightsError(
            f"weights of shape {shape} have NaN or infinity, in the row "
            f"[{place.format(start + bad)}]. Are these masked scores before softmax?"
        )
    if lowest < 0:
        raise NotWeightsError(
            f"weights of shape {shape} have negative values, as {lowest:.3g}; attention weights "
            f"are never negative. Are these the scores before softmax?"
        )
    sums = rows.sum(-1)
    off = (sums - 1).abs()
    if float(off.max()) > _ROUNDING:
        bad = int(off.argmax())
        raise NotWeightsError(
            f"rows of weights of shape {shape} don't sum to 1: [{place.format(start + bad)}] sums "
            f"to {float(sums[bad]):.4g}. Were keys cut off, are query and key swapped, or did "
            f"dropout act (model.eval() turns it off)?"
        )
