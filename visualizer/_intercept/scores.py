"""Scores in a graph that is being made: which queries, keys and masks a softmax is taken of.

A compiler may fuse the softmax with the products around it. It does not if somebody else reads what
lies between them, and then the output has other bits. So it is looked up here what goes in, before
anything that may be fused: casts, factors and views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.fx import Node

__all__ = ["Factor", "Scores", "View", "find_scores"]

_HIDES = -1e4
"""What is put in place of a score hides the key from here on."""

_CASTS = ("clone", "contiguous", "float", "to", "type")
_MULTIPLIES = ("imul", "mul", "multiply")
_DIVIDES = ("div", "itruediv", "truediv")
_VIEWS = ("permute", "swapaxes", "swapdims", "transpose")

View = tuple[str, tuple[Any, ...]]
"""A tensor's method that returns a view, and its arguments."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A factor of the product: what it is a view of.

    Attributes:
        node: Read before it is cast, scaled and viewed.
        scale: What it is multiplied with.
        views: In their order.
    """

    node: Node
    scale: float = 1.0
    views: tuple[View, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """What scores are made of: `scale · query · key`, and masks.

    Attributes:
        query: Shape `(…, query, dim)`.
        key: Shape `(…, dim, key)`.
        scale: What the product is multiplied with.
        bias: What is added.
        hidden: Boolean, True is hidden.
        hides_with: What scores of hidden keys are replaced by.
    """

    query: Factor
    key: Factor
    scale: float
    bias: Node | None = None
    hidden: Node | None = None
    hides_with: float = -math.inf


def find_scores(node: Any) -> Scores | None:
    """Return what a node's scores are made of; None where they are made in another way."""
    name, args = _name(node), node.args if isinstance(node, Node) else ()
    if name in _CASTS and args:
        return find_scores(args[0])
    if name in ("baddbmm", "bmm", "matmul"):
        return _product(name, node)
    if not _is_simple(node):
        return None
    if name in (*_MULTIPLIES, *_DIVIDES):
        return _scaled(node)
    if name in ("add", "add_", "iadd"):
        return _with_bias(args[0], args[1]) or _with_bias(args[1], args[0])
    if name in ("masked_fill", "masked_fill_"):
        return _with_hidden(*args)
    return None


def _name(node: Any) -> str | None:
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return None
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", None)


def _is_simple(node: Any) -> bool:
    """Tell whether a node has two or three arguments, given by their place."""
    return isinstance(node, Node) and not node.kwargs and len(node.args) in (2, 3)


def _is_tensor(node: Any) -> bool:
    return isinstance(node, Node) and isinstance(node.meta.get("example_value"), Tensor)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _product(name: str, node: Node) -> Scores | None:
    args: tuple[Any, ...] = node.args
    if (
        node.kwargs
        or len(args) != (3 if name == "baddbmm" else 2)
        or not all(map(_is_tensor, args))
    ):
        return None
    *bias, query, key = args
    query, key = _factor(query), _factor(key)
    return Scores(query, key, query.scale * key.scale, bias[0] if bias else None)


def _factor(node: Any) -> Factor:
    """Look through what is done to a factor of the product."""
    name = _name(node)
    if name not in (*_CASTS, *_MULTIPLIES, *_DIVIDES, *_VIEWS) or not _is_tensor(node.args[0]):
        return Factor(node)
    inner, *rest = node.args
    if name in _CASTS:
        return _factor(inner) if _is_cast(inner, node) else Factor(node)
    if name in _VIEWS:
        found = _factor(inner)
        view = (name, tuple(rest))
        is_plain = not node.kwargs and not any(isinstance(axis, Node) for axis in rest)
        return replace(found, views=(*found.views, view)) if is_plain else Factor(node)
    number = _number(node)
    if number is None:
        return Factor(node)
    found = _factor(inner)
    return replace(found, scale=found.scale * number)


def _is_cast(inner: Node, node: Node) -> bool:
    """Tell whether a node has the values of another, in a type that is no less exact."""
    before, after = inner.meta["example_value"], node.meta["example_value"]
    return bool(
        before.device == after.device
        and after.is_floating_point()
        and after.dtype.itemsize >= before.dtype.itemsize
    )


def _number(node: Node) -> float | None:
    """Return what a node multiplies with."""
    if not _is_simple(node) or len(node.args) != 2 or not _is_number(node.args[1]):
        return None
    number: Any = node.args[1]
    if _name(node) in _MULTIPLIES:
        return float(number)
    return 1 / number if number else None


def _scaled(node: Node) -> Scores | None:
    number, found = _number(node), find_scores(node.args[0])
    if number is None or found is None or found.bias is not None:
        return None
    if found.hidden is not None and not math.isinf(found.hides_with):
        return None
    return replace(found, scale=found.scale * number)


def _with_bias(inner: Any, bias: Any) -> Scores | None:
    found = find_scores(inner) if _is_tensor(bias) else None
    if found is None or found.bias is not None or found.hidden is not None:
        return None
    return replace(found, bias=bias)


def _with_hidden(inner: Any, hidden: Any, value: Any = None) -> Scores | None:
    found = find_scores(inner) if _is_tensor(hidden) and _is_number(value) else None
    if found is None or found.hidden is not None or value > _HIDES:
        return None
    return replace(found, hidden=hidden, hides_with=float(value))
