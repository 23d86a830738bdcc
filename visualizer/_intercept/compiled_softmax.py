"""Softmax in compiled models, and torch.nn's multi-head attention, which may take one.

Dynamo puts both into its graphs without looking into them, and it does not look up what a tensor's
methods are. So it is told here what to do where it meets one.
"""

from __future__ import annotations

import functools
import itertools
import math
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visualizer._intercept.compiled import Handed, Look, saw
from visualizer._intercept.observation import FourAxes, QueryKeyObservation
from visualizer._intercept.observers import Sighting
from visualizer._intercept.scores import Scores, View, find_scores
from visualizer._intercept.softmax import (
    four_axes,
    heads_of,
    looks_like_attention,
    sight_weights,
)
from visualizer._intercept.telling import tell_errors
from visualizer._intercept.tracing import NOT_SEEN, find_modules, find_spot_of, reading
from visualizer.attention import Mask

__all__ = ["make_handlers", "make_softmax_method"]

_SOFTMAX = (torch.softmax,)  # a name of its own would be taken for the program's, and replaced
_CHECKS = (torch._check, torch._check_with)
_MULTI_HEAD = functional.multi_head_attention_forward.__code__


def make_softmax_method(original: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return what Dynamo calls for `Tensor.softmax`; it has nothing of its own there."""

    def method_softmax(self: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
        found = _on_softmax(tx, self, *args, **kwargs)
        return original(self, tx, *args, **kwargs) if found is None and original else found

    return method_softmax


def make_handlers(original: Callable[[], dict[Any, Any]]) -> Any:
    """Return what gives Dynamo its handlers of functions: with ours."""

    @functools.cache
    def _get_handlers() -> dict[Any, Any]:
        known = original()
        ours: dict[Any, Any] = {
            check: functools.partial(_on_check, known[check]) for check in _CHECKS if check in known
        }
        ours |= {
            _SOFTMAX[0]: lambda _, tx, *args, **kwargs: _on_softmax(tx, *args, **kwargs),
            functional.softmax: lambda _, tx, *args, **kwargs: _on_functional(tx, *args, **kwargs),
            functional.multi_head_attention_forward: _on_multi_head,
        }
        return {**known, **ours}

    return staticmethod(_get_handlers)


def _on_multi_head(_: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
    """Have the function read like any other: it calls a kernel that is seen, or takes a softmax."""
    from torch._dynamo.exc import Unsupported
    from torch._dynamo.variables import UserFunctionVariable

    function = functional.multi_head_attention_forward
    twin = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    try:
        return UserFunctionVariable(twin).call_function(tx, list(args), kwargs)
    except Unsupported:  # then it goes into the graph unread, as it would without us
        return None


def _on_check(original: Callable[..., Any], self: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
    """Have a check of multi-head attention's made without its message, which can't be read."""
    from torch._dynamo.variables import NestedUserFunctionVariable

    if any(reader.f_code is _MULTI_HEAD for reader in reading()):
        args = tuple(arg for arg in args if not isinstance(arg, NestedUserFunctionVariable))
    return original(self, tx, *args, **kwargs)


def _on_functional(
    tx: Any,
    input: Any,  # noqa: A002
    dim: Any = None,
    _stacklevel: Any = None,
    dtype: Any = None,
) -> Any:
    return None if dim is None else _on_softmax(tx, input, dim, dtype)


def _on_softmax(tx: Any, *args: Any, **kwargs: Any) -> Any:
    """Have the softmax read as `_softmax`; None has Dynamo go on as it would."""
    if any(reader.f_code is _softmax.__code__ for reader in itertools.islice(reading(), 2)):
        return None
    given = None
    with tell_errors():
        given = _find(tx, *args, **kwargs)
    if given is None:
        return None
    from torch._dynamo.variables import UserFunctionVariable

    reads: Any = _softmax
    return UserFunctionVariable(reads).call_function(tx, given, {})


def _find(tx: Any, input: Any, dim: Any = None, dtype: Any = None) -> list[Any] | None:  # noqa: A002
    """Return what `_softmax` is given of a softmax that may be a map; None where it is none."""
    from torch._dynamo.variables import ConstantVariable

    node = input.as_proxy().node
    readers = list(reading())
    modules = [each for each in find_modules(readers) if not isinstance(each, nn.Softmax)]
    example, owner = node.meta["example_value"], modules[0] if modules else None
    if dim is None or not _may_be_attention(example, dim.as_python_constant(), owner):
        return None
    scores = find_scores(node)
    spot = find_spot_of(readers, _make_look(scores, readers), modules)
    if spot == NOT_SEEN:
        return None
    nodes: list[Any] = [None] * 4
    if scores is not None:
        nodes = [scores.query.node, scores.key.node, scores.bias, scores.hidden]
    nothing = ConstantVariable.create(None)
    tensors = [nothing if each is None else _variable(tx, input, each) for each in nodes]
    return [
        input,
        dim,
        nothing if dtype is None else dtype,
        ConstantVariable.create(spot),
        *tensors,
    ]


def _may_be_attention(scores: Tensor, dim: int, module: Any) -> bool:
    """Tell whether a softmax may be a map; while sizes are unknown, that is for `_look` to say."""
    if scores.dim() < 3 or dim not in (-1, scores.dim() - 1) or not scores.is_floating_point():
        return False
    sizes = scores.shape[-2:]
    is_known = all(type(size) is int for size in sizes)
    return looks_like_attention(sizes if is_known else (2, 2), module)


def _variable(tx: Any, like: Any, node: Any) -> Any:
    """Return a node of the graph, detached, as Dynamo's variable."""
    from torch._dynamo.variables.builder import wrap_fx_proxy

    proxy = torch.fx.Proxy(node, like.as_proxy().tracer)
    return wrap_fx_proxy(tx, tx.output.create_proxy("call_method", "detach", (proxy,), {}))


def _softmax(
    scores: Tensor,
    dim: int,
    dtype: torch.dtype | None,
    spot: int,
    query: Tensor | None,
    key: Tensor | None,
    bias: Tensor | None,
    hidden: Tensor | None,
) -> Tensor:
    """Take a softmax, and hand over what it is taken of. Compiled, never run."""
    weights = torch.softmax(scores, dim, dtype=dtype)
    saw(spot, [weights] if query is None else [query, key], [bias, hidden])
    return weights


def _make_look(scores: Scores | None, readers: list[Any]) -> Look:
    """Return what makes a sighting; nothing of the graph may be kept for that."""
    if scores is None:
        return _look_at_weights
    is_multi_head = any(reader.f_code is _MULTI_HEAD for reader in readers[:2])
    return functools.partial(
        _look,
        source="multi_head_attention" if is_multi_head else "softmax",
        views=(scores.query.views, scores.key.views),
        scale=scores.scale,
        hides_with=scores.hides_with,
    )


def _look_at_weights(handed: Handed) -> Sighting | None:
    (weights,) = handed.tensors
    assert weights is not None
    if not looks_like_attention(weights.shape[-2:], handed.module):
        return None
    return sight_weights(weights, handed.module)


def _look(
    handed: Handed,
    *,
    source: str,
    views: tuple[tuple[View, ...], tuple[View, ...]],
    scale: float,
    hides_with: float,
) -> Sighting | None:
    query, key = handed.tensors
    query, key = _viewed(query, views[0]), _viewed(key, views[1]).transpose(-2, -1)
    if not looks_like_attention((query.shape[-2], key.shape[-2]), handed.module):
        return None
    facts = {"source": source, "scale": scale, "hides_with": hides_with}
    given = (query, key, *handed.parts, handed.module)
    return Sighting(_observe, given, facts, (query, key), handed.parts, handed.module)


def _viewed(tensor: Any, views: tuple[View, ...]) -> Tensor:
    for name, arguments in views:
        tensor = getattr(tensor, name)(*arguments)
    assert isinstance(tensor, Tensor)
    return tensor


def _observe(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    hidden: Tensor | None,
    module: Any,
    *,
    source: str,
    scale: float,
    hides_with: float,
) -> QueryKeyObservation:
    leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    heads = heads_of(module)
    query, key = (
        four_axes(each.expand(*leading, *each.shape[-2:]), heads) for each in (query, key)
    )
    bias, hidden = (_arrange_part(part, leading, heads) for part in (bias, hidden))
    return QueryKeyObservation(
        source=source,
        module=module,
        shape=(*query.shape[:3], key.shape[2]),
        tensors=FourAxes(query, key, None, query),
        parts=(bias, hidden),
        arrange=lambda tensors: tensors,
        make_mask=lambda: _mask(bias, hidden, hides_with),
        scale=scale,
        empty_rows=math.nan,
    )


def _arrange_part(part: Tensor | None, leading: tuple[int, ...], heads: Any) -> Tensor | None:
    """Return a mask with four axes, given what stands before queries and keys in the scores."""
    if part is None or part.dim() < 3 or len(leading) == 2:
        return part
    if len(leading) == 1:
        return part.unsqueeze(0) if len(part) == 1 else four_axes(part, heads)
    return four_axes(part.expand(*leading, *part.shape[-2:]), heads)


def _mask(bias: Tensor | None, hidden: Tensor | None, hides_with: float) -> Mask:
    if hidden is None:
        return Mask() if bias is None else Mask.from_tensor(bias)
    found = replace(Mask.from_tensor(~hidden), hidden=hides_with)
    return found if bias is None else replace(found, bias=bias)
