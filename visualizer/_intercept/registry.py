"""The attention functions of transformers, as its models look them up at each call.

Seen here rather than inside them, since this is where the module, the keys before they are
repeated for grouped queries, and bias, softcap and sinks are still told apart.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from visualizer._intercept.block_mask import is_too_large, to_mask
from visualizer._intercept.compiled import (
    Handed,
    Look,
    count_spots,
    repeat_heads,
    saw,
    unrepeat_heads,
)
from visualizer._intercept.observation import FourAxes, Observation, QueryKeyObservation
from visualizer._intercept.observers import Sighting, call_inside, count_told, depth, find_observers
from visualizer._intercept.sdpa import as_added
from visualizer._intercept.telling import refuse, tell, tell_errors
from visualizer._intercept.tracing import (
    NOT_SEEN,
    find_local,
    find_spot,
    hides,
    reading,
    runs_while_compiling,
)
from visualizer.attention import Mask

__all__ = ["find_registry", "make_get_interface"]

_SDPA, _FLEX = "sdpa", "flex_attention"


def find_registry() -> type | None:
    """Return transformers' registry; None where transformers is not loaded, or has none."""
    loaded = sys.modules.get("transformers.modeling_utils")
    registry = getattr(loaded, "AttentionInterface", None)
    return registry if registry is not None and hasattr(registry, "get_interface") else None


def make_get_interface(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands in for `AttentionInterface.get_interface`."""

    @functools.wraps(original)
    def get_interface(self: Any, attn_implementation: str, default: Callable[..., Any]) -> Any:
        function = original(self, attn_implementation, default)
        name = attn_implementation or "eager"
        if torch.compiler.is_dynamo_compiling():
            compiled = _compiled if _is_known(name) else _compiled_unknown
            return functools.partial(compiled, function, name)
        return _observed(function, name) if find_observers() else function

    return get_interface


def _observed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function that does the same, and tells of it."""
    observe = _find_observe(function, name)
    if observe is None:
        return functools.partial(_call_unknown, function, name)

    def call(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        if depth.inside:
            return function(module, query, key, *args, **kwargs)
        result = call_inside(function, module, query, key, *args, **kwargs)
        value = args[0] if args else kwargs.get("value")
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        results = result if isinstance(result, tuple) else ()
        tell(
            Sighting(
                observe,
                (result, module, query, key, *args),
                kwargs,
                (query, key, value, *results[:2]),
                (
                    mask if isinstance(mask, Tensor) else None,
                    kwargs.get("position_bias"),
                    kwargs.get("s_aux"),
                ),
                module,
            )
        )
        return result

    return call


def _find_observe(function: Callable[..., Any], name: str) -> Callable[..., Observation] | None:
    """Return what observes a function that we know; a name may be registered anew."""
    module = getattr(function, "__module__", "") or ""
    if name in (_SDPA, _FLEX) and not module.startswith("transformers.integrations."):
        return None
    return _OBSERVE.get(name)


def _call_unknown(function: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function that is not known: what it calls in turn may be seen."""
    before = count_told()
    result = function(*args, **kwargs)
    if count_told() == before and not depth.inside:
        module = args[0] if args else kwargs.get("module")
        tell(refuse(name, _unseen(name), module))
    return result


@runs_while_compiling
def _is_known(name: str) -> bool:
    """Tell whether `get_interface`, which calls this, has found a function that we know."""
    with tell_errors():
        return _find_observe(find_local(next(reading()), "function"), name) is not None
    return False


@hides
def _compiled(
    function: Callable[..., Any],
    name: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call a function that we know, and hand the call over when the graph runs."""
    result = function(module, query, key, *args, **kwargs)
    value: Any = args[0] if args else kwargs.get("value")
    mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
    is_plain = (mask is None or isinstance(mask, Tensor)) and kwargs.get("cache") is None
    spot = _find_spot(name, is_plain)
    if spot != NOT_SEEN and is_plain:
        groups = getattr(module, "num_key_value_groups", 1)
        is_repeated = name != _SDPA or mask is not None or key.device.type == "cpu"
        if groups > 1 and is_repeated and query.shape[1] == groups * key.shape[1]:
            key, value = repeat_heads(key, groups), repeat_heads(value, groups)
        saw(
            spot,
            [query, key, value, result[0]],
            [
                as_added(mask, query) if _is_added(name, kwargs) else mask,
                kwargs.get("position_bias"),
                kwargs.get("s_aux"),
            ],
            kwargs.get("scaling"),
            kwargs.get("softcap"),
            kwargs.get("dropout") or 0.0,
            kwargs.get("is_causal"),
        )
    elif spot != NOT_SEEN:
        saw(spot, [], [])
    return result


def _compiled_unknown(
    function: Callable[..., Any], name: str, module: Any, *args: Any, **kwargs: Any
) -> Any:
    """Call a function that is not known: what it calls in turn may be seen."""
    before = _count_spots()
    result = function(module, *args, **kwargs)
    if _count_spots() == before:
        spot = _find_spot_of_unknown(name)
        if spot != NOT_SEEN:
            saw(spot, [], [])
    return result


def _is_added(name: str, options: dict[str, Any]) -> bool:
    """Tell whether the function hands the mask on as it is."""
    return name == _SDPA and options.get("position_bias") is None


@runs_while_compiling
def _count_spots() -> int:
    return count_spots()


@runs_while_compiling
def _find_spot(name: str, is_plain: bool) -> int:
    if not is_plain:
        return find_spot(_refusing(name, _IN_A_GRAPH), "module")
    return find_spot(functools.partial(_look, _OBSERVE[name]), "module")


@runs_while_compiling
def _find_spot_of_unknown(name: str) -> int:
    return find_spot(_refusing(name, _unseen(name)), "module")


_IN_A_GRAPH = "a compiled graph can't hand over its BlockMask, or its paged cache"


def _unseen(name: str) -> str:
    return f"the attention function {name!r} calls none that can be seen"


def _refusing(name: str, reason: str) -> Look:
    return lambda handed: refuse(name, reason, handed.module)


def _look(observe: Callable[..., Observation], handed: Handed) -> Sighting:
    query, key, value, output = map(unrepeat_heads, handed.tensors)
    mask, bias, sinks = handed.parts
    options = {
        "scaling": handed.scale,
        "softcap": handed.softcap,
        "dropout": handed.dropout,
        "is_causal": handed.is_causal,
        "position_bias": bias,
        "s_aux": sinks,
    }
    given = ((output, None), handed.module, query, key, value, mask)
    tensors = (query, key, value, output)
    return Sighting(observe, given, options, tensors, handed.parts, handed.module)


def _observe_eager(
    result: tuple[Tensor, Tensor | None],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *_: Any,
    **options: Any,
) -> Observation:
    output, weights = result[0], result[1]
    sinks = options.get("s_aux")
    return QueryKeyObservation(
        **_common("eager", module, query, key, value, output, attention_mask, options, weights),
        make_mask=lambda: _eager_mask(attention_mask, key, options.get("position_bias")),
        sinks=getattr(module, "sinks", None) if sinks is None else sinks,
        empty_rows=math.nan,
    )


def _observe_sdpa(
    result: tuple[Tensor, Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *_: Any,
    **options: Any,
) -> Observation:
    if options.get("cache") is not None:
        return _paged(_SDPA, module)
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_causal = bool(is_causal) and query.shape[2] > 1 and attention_mask is None
    bias = options.get("position_bias")
    return QueryKeyObservation(
        **_common(_SDPA, module, query, key, value, result[0], attention_mask, options),
        make_mask=lambda: _sdpa_mask(attention_mask, is_causal, key, bias),
    )


def _observe_flex(
    result: tuple[Tensor, Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    *_: Any,
    **options: Any,
) -> Observation:
    is_block = attention_mask is not None and not isinstance(attention_mask, Tensor)
    if is_block and is_too_large(attention_mask, query.shape[2], key.shape[2]):
        reason = "its BlockMask has too many queries and keys to be written out"
        return Observation(source=_FLEX, module=module, refusal=reason)
    bias, given = options.get("position_bias"), None if is_block else attention_mask
    return QueryKeyObservation(
        **_common(_FLEX, module, query, key, value, result[0], given, options),
        make_mask=lambda: (
            _with_bias(to_mask(attention_mask, query, key), bias)
            if is_block
            else _eager_mask(attention_mask, key, bias)
        ),
        sinks=options.get("s_aux"),
    )


def _common(
    source: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
    weights: Tensor | None = None,
) -> dict[str, Any]:
    """Return what all of these functions have in common, as an observation's fields."""
    scale = options.get("scaling")
    dropout = options.get("dropout") or 0.0
    return {
        "source": source,
        "module": module,
        "shape": (*query.shape[:3], key.shape[2]),
        "tensors": FourAxes(query, key, value, output, weights),
        "arrange": _arrange,
        "arrange_returned": _arrange_output,
        "parts": (mask, options.get("position_bias"), options.get("s_aux")),
        "scale": 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        "softcap": options.get("softcap"),
        "dropout": dropout if getattr(module, "training", True) else 0.0,
    }


def _arrange(tensors: FourAxes) -> FourAxes:
    return tensors._replace(output=_arrange_output(tensors.output))


def _arrange_output(output: Tensor) -> Tensor:
    """Put the heads before the queries."""
    return output.transpose(1, 2)


def _eager_mask(mask: Tensor | None, key: Tensor, bias: Tensor | None) -> Mask:
    if mask is not None:
        mask = mask[..., : key.shape[-2]].detach()
    return _with_bias(None if mask is None else Mask.from_tensor(mask), bias)


def _sdpa_mask(mask: Tensor | None, is_causal: bool, key: Tensor, bias: Tensor | None) -> Mask:
    """Return the mask as the function makes it; beside a bias, what is hidden is finite."""
    causal = 0 if is_causal else None
    found = Mask(causal=causal) if mask is None else Mask.from_tensor(mask.detach())
    if bias is None:
        return found
    if mask is None or mask.dtype == torch.bool:
        found = replace(found, hidden=torch.finfo(key.dtype).min)
    return _with_bias(found, bias)


def _with_bias(mask: Mask | None, bias: Tensor | None) -> Mask:
    if mask is None:
        mask = Mask()
    if bias is None:
        return mask
    bias = bias.detach()
    return replace(mask, bias=bias if mask.bias is None else mask.bias + bias)


def _paged(source: str, module: Any) -> Observation:
    reason = "its keys are in a paged cache of continuous batching"
    return Observation(source=source, module=module, refusal=reason)


_OBSERVE: dict[str, Callable[..., Observation]] = {
    "eager": _observe_eager,
    _SDPA: _observe_sdpa,
    _FLEX: _observe_flex,
}
