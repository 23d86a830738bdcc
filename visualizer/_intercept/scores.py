"""Scores in a graph that is being made: which queries, keys and masks a softmax is taken of.

A graph's softmax may be fused with the products around it, and is not if somebody else reads what
lies between them: that would change the output. What goes in can be read at no such price.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.fx import Node

__all__ = ["Scores", "find_scores"]

_HIDES = -1e4
"""What is put in place of a score hides the key from here on."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What scores are made of: `scale · query · keyᵀ`, and masks.

    Attributes:
        query: Shape `(…, query, dim)`.
        key: Shape `(…, key, dim)`, or `(…, dim, key)` where it is transposed.
        is_transposed: Whether it is.
        scale: What the product is multiplied with.
        bias: What is added.
        hidden: Boolean, True is hidden.
        hides_with: What scores of hidden keys are replaced by.
    """

    query: Node
    key: Node
    is_transposed: bool = True
    scale: float = 1.0
    bias: Node | None = None
    hidden: Node | None = None
    hides_with: float = -math.inf


def find_scores(node: Any) -> Scores | None:
    """Return what a node's scores are made of; None where they are made in another way."""
    name, args = _name(node), () if not isinstance(node, Node) else node.args
    if name in ("float", "to", "contiguous", "clone") and args:
        return find_scores(args[0])
    if name in ("matmul", "bmm", "baddbmm"):
        return _product(name, node)
    if _is_odd(node):
        return None
    if name in ("mul", "imul", "multiply", "div", "truediv", "itruediv"):
        return _scaled(name, args)
    if name in ("add", "iadd", "add_"):
        return _with_bias(args[0], args[1]) or _with_bias(args[1], args[0])
    if name in ("masked_fill", "masked_fill_"):
        return _with_hidden(*args)
    return None


def _is_odd(node: Any) -> bool:
    """Tell whether a node is no operation on two or three arguments given by their place."""
    return not isinstance(node, Node) or bool(node.kwargs) or len(node.args) not in (2, 3)


def _name(node: Any) -> str | None:
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return None
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", None)


def _product(name: str, node: Node) -> Scores | None:
    if node.kwargs or len(node.args) != (3 if name == "baddbmm" else 2):
        return None
    *bias, query, key = node.args
    if not all(_is_tensor(each) for each in (*bias, query, key)):
        return None
    query, scale = _unscaled(query)
    key, key_scale = _unscaled(key)
    swapped = _untransposed(key)
    if swapped is not None:
        key, more = _unscaled(swapped)
        key_scale *= more
    return Scores(
        query=query,
        key=key,
        is_transposed=swapped is None,
        scale=scale * key_scale,
        bias=bias[0] if bias else None,  # type: ignore[arg-type]
    )


def _is_tensor(node: Any) -> bool:
    return isinstance(node, Node) and isinstance(node.meta.get("example_value"), Tensor)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unscaled(node: Any) -> tuple[Node, float]:
    """Return what is multiplied with a number, and the number; 1 where nothing is."""
    factor = _factor(node)
    return (node, 1.0) if factor is None else (node.args[0], factor)


def _factor(node: Any) -> float | None:
    name = _name(node)
    if _is_odd(node) or not _is_number(node.args[1]) or not _is_tensor(node.args[0]):
        return None
    if name in ("mul", "multiply"):
        return float(node.args[1])
    return 1 / node.args[1] if name in ("div", "truediv") and node.args[1] else None


def _untransposed(node: Node) -> Node | None:
    """Return what has its last two axes swapped; None where it is another operation."""
    if _name(node) not in ("transpose", "swapaxes", "swapdims") or len(node.args) != 3:
        return None
    inner, *axes = node.args
    if not isinstance(inner, Node) or not _is_tensor(inner):
        return None
    count = inner.meta["example_value"].dim()
    found = {axis % count for axis in axes if isinstance(axis, int)}
    return inner if found == {count - 2, count - 1} else None


def _scaled(name: str, args: Any) -> Scores | None:
    inner, factor = args[:2]
    if not _is_number(factor) or (found := find_scores(inner)) is None or found.bias is not None:
        return None
    if found.hidden is not None and not math.isinf(found.hides_with):
        return None
    factor = factor if name in ("mul", "imul", "multiply") else 1 / factor
    return replace(found, scale=found.scale * factor)


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
