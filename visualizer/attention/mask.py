"""Which keys a query sees, in a form that takes little memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from visualizer.attention.picks import Pick, Shape, positions, take
from visualizer.errors import OutOfRangeError, ShapeError

__all__ = ["Mask"]

_ABSORBS = -1e30
"""Added to a score, such a number leaves nothing of it; its weight beside any other is 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Which keys each query sees, and what is added to the scores.

    A key is visible where all parts say so; None is no such part.

    Attributes:
        causal: Query `i` sees keys `j <= i + causal`; 0 is `is_causal=True` of SDPA.
        window: Beside `causal`: the last so many of these keys only, the own one included.
        spans: First and last key that each query sees, broadcastable to `(batch, head, query)`;
            a query with `first > last` sees none.
        keys: Boolean, broadcastable to `(batch, 1, 1, key)`; True is visible.
        visible: Boolean, broadcastable to `(batch, head, query, key)`; True is visible.
        bias: Added to the scores, broadcastable to `(batch, head, query, key)`.
        hidden: What the scores of hidden keys become. With a finite number a row that sees no key
            is uniform over all keys, as in eager attention of transformers.
    """

    causal: int | None = None
    window: int | None = None
    spans: tuple[Tensor, Tensor] | None = None
    keys: Tensor | None = None
    visible: Tensor | None = None
    bias: Tensor | None = None
    hidden: float = -math.inf

    def __post_init__(self) -> None:
        """Check the parts, and give tensors all of their axes."""
        _check_numbers(self)
        if self.spans is not None:
            first, last = self.spans
            object.__setattr__(self, "spans", (_aligned(first, 3), _aligned(last, 3)))
        for name in ("keys", "visible", "bias"):
            tensor = getattr(self, name)
            if tensor is not None:
                _check_type(name, tensor)
                object.__setattr__(self, name, _aligned(tensor, 4))

    @classmethod
    def from_tensor(cls, tensor: Tensor, *, causal: int | None = None) -> Mask:
        """Return the compact form of a mask as `scaled_dot_product_attention` takes it.

        Args:
            tensor: Boolean, True is visible, or added to the scores; 1 to 4 axes, broadcastable
                from the right to `(batch, head, query, key)`.
            causal: As the attribute, beside the tensor.
        Raises:
            ShapeError: Another number of axes.
        """
        from visualizer.attention.compaction import compact

        return compact(tensor, causal=causal)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the mask holds."""
        parts = (*(self.spans or ()), self.keys, self.visible, self.bias)
        return tuple(part for part in parts if part is not None)

    @property
    def kind(self) -> str:
        """The parts in words: `"none"`, `"causal"`, `"causal+window+keys"`, `"spans"`, `"bias"`."""
        names = ("causal", "window", "spans", "keys", "visible", "bias")
        return "+".join(name for name in names if getattr(self, name) is not None) or "none"

    def is_causal(self, queries: int, keys: int) -> bool:
        """Return whether the compact parts show that no query sees a key behind its own place.

        With fewer queries than keys, the queries are the last ones.
        """
        behind = keys - queries
        if queries == 1 or (self.causal is not None and self.causal <= behind):
            return True
        if self.spans is None:
            return False
        first, last = self.spans
        place = torch.arange(behind, keys, dtype=torch.int64, device=last.device)
        return bool(((last <= place) | (first > last)).all())

    @property
    def fill(self) -> float:
        """What to put in the place of hidden scores: -inf, unless `hidden` is more than nothing."""
        swallowed = self.hidden <= _ABSORBS and self.bias is None
        return -math.inf if swallowed else self.hidden

    def may_hide_rows(self) -> bool:
        """Return whether there may be queries that see no key at all."""
        if self.kind == "causal":
            return self.causal is not None and self.causal < 0
        return self.kind != "none" and (self.fill == -math.inf or self.bias is not None)

    def reach(self, pick: Pick, shape: Shape) -> slice:
        """Return the keys outside of which the weights of these queries are surely 0."""
        low, high = 0, shape[3]
        beyond_is_0 = self.hidden == -math.inf or not self.may_hide_rows()
        if self.fill != -math.inf or not beyond_is_0 or not isinstance(pick.queries, slice):
            return slice(low, high)
        if self.causal is not None:
            high = min(high, pick.queries.stop + self.causal)
            if self.window is not None:
                low = max(low, pick.queries.start + self.causal - self.window + 1)
        if self.spans is not None and self.spans[0].device.type == "cpu":
            first, last = (take(end, pick.items, pick.heads, pick.queries) for end in self.spans)
            low, high = max(low, int(first.min())), min(high, int(last.max()) + 1)
        low = min(max(low, 0), shape[3] - 1)
        return slice(low, max(high, low + 1))

    def apply_(self, scores: Tensor, pick: Pick) -> None:
        """Add the bias to scores, shape `(item, head, query, key)`, and fill the hidden ones."""
        if self.bias is not None:
            scores.add_(take(self.bias, pick.items, pick.heads, pick.queries, pick.keys))
        keys = pick.keys
        if self.kind == "causal" and isinstance(pick.queries, slice) and self.causal is not None:
            first_hidden = min(max(pick.queries.start + self.causal + 1, keys.start), keys.stop)
            scores = scores[..., first_hidden - keys.start :]
            keys = slice(first_hidden, keys.stop)
        visible = self.seen(pick, keys, scores.device)
        if visible is not None and scores.numel():
            scores.masked_fill_(~visible, self.fill)

    def seen(self, pick: Pick, keys: slice, device: torch.device) -> Tensor | None:
        """Return what is visible, broadcastable to `(item, head, query, key)`; None is all."""
        parts: list[Tensor] = []
        place = positions(keys, device)
        if self.causal is not None:
            until = positions(pick.queries, device).unsqueeze(-1) + self.causal
            parts.append(place <= until)
            if self.window is not None:
                parts.append(place > until - self.window)
        if self.spans is not None:
            picked = (take(end, pick.items, pick.heads, pick.queries) for end in self.spans)
            first, last = (end.to(device).unsqueeze(-1) for end in picked)
            parts.append((first <= place) & (place <= last))
        for tensor in (self.keys, self.visible):
            if tensor is not None:
                whole = take(tensor, pick.items, pick.heads, pick.queries, keys)
                parts.append(whole.to(device))
        result = parts[0] if parts else None
        for part in parts[1:]:
            result = part if result is None else result & part
        return result


def _check_numbers(mask: Mask) -> None:
    for name in ("causal", "window"):
        value = getattr(mask, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise OutOfRangeError(
                f"{name} is {value!r}; expected None or a whole number. is_causal=True is causal=0"
            )
    if mask.window is not None and (mask.causal is None or mask.window < 1):
        raise OutOfRangeError(
            f"window is {mask.window}, with causal={mask.causal}; expected at least 1 key, and an "
            f"offset as causal. A window to both sides is given by spans"
        )


def _check_type(name: str, tensor: Tensor) -> None:
    right = tensor.is_floating_point() if name == "bias" else tensor.dtype == torch.bool
    if not right:
        expected = "of floating point" if name == "bias" else "boolean, True for visible"
        raise ShapeError(f"the mask's {name} is of type {tensor.dtype}; expected {expected}")


def _aligned(tensor: Tensor, axes: int) -> Tensor:
    if tensor.ndim > axes:
        raise ShapeError(
            f"a part of a mask has shape {tuple(tensor.shape)}; expected {axes} axes at most"
        )
    return tensor if tensor.ndim == axes else tensor[(None,) * (axes - tensor.ndim)]
