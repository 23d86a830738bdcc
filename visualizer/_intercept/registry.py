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

from visualizer._intercept.observation import Observation, QueryKeyObservation
from visualizer._intercept.observers import count_told, find_observers, inside, is_inside
from visualizer._intercept.telling import tell
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
        if not find_observers():
            return function
        return _observed(function, attn_implementation or "eager")

    return get_interface


def _observed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    kind = _kind(function, name)
    if kind is None:
        return functools.partial(_call_unknown, function, name)
    return functools.partial(_call_known, function, kind)


def _kind(function: Callable[..., Any], name: str) -> str | None:
    """Say which of the functions that we know this is; a name may be registered anew."""
    module = getattr(function, "__module__", "") or ""
    if name in (_SDPA, _FLEX):
        return name if module.startswith("transformers.integrations.") else None
    return "eager" if name == "eager" else None


def _call_known(function: Callable[..., Any], kind: str, *args: Any, **kwargs: Any) -> Any:
    if is_inside():
        return function(*args, **kwargs)
    with inside():
        result = function(*args, **kwargs)
    observe = {"eager": _observe_eager, _SDPA: _observe_sdpa, _FLEX: _observe_flex}[kind]
    tell(lambda: observe(result, *args, **kwargs))
    return result


def _call_unknown(function: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function that is not known: what it calls in turn may be seen."""
    before = count_told()
    result = function(*args, **kwargs)
    if count_told() == before and not is_inside():
        module = args[0] if args else kwargs.get("module")
        reason = f"the attention function {name!r} calls none that can be seen"
        tell(lambda: Observation(source=name, module=module, refusal=reason))
    return result


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
        **_common("eager", module, query, key, value, output, options),
        make_mask=lambda: _eager_mask(attention_mask, key, options.get("position_bias")),
        sinks=getattr(module, "sinks", None) if sinks is None else sinks,
        empty_rows=math.nan,
        weights=weights,
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
        **_common(_SDPA, module, query, key, value, result[0], options),
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
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        reason = "its mask is a BlockMask, a function that says which keys are seen"
        return Observation(source=_FLEX, module=module, refusal=reason)
    return QueryKeyObservation(
        **_common(_FLEX, module, query, key, value, result[0], options),
        make_mask=lambda: _eager_mask(attention_mask, key, options.get("position_bias")),
        sinks=options.get("s_aux"),
    )


def _common(
    source: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Return what all of these functions have in common, as an observation's fields."""
    scale = options.get("scaling")
    dropout = options.get("dropout") or 0.0
    return {
        "source": source,
        "module": module,
        "shape": (*query.shape[:3], key.shape[2]),
        "query": query,
        "key": key,
        "value": value,
        "output": output.transpose(1, 2),
        "scale": 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        "softcap": options.get("softcap"),
        "dropout": dropout if getattr(module, "training", True) else 0.0,
    }


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
