"""torch.nn's fused layers, which project queries and keys where nobody sees them.

What goes into a layer is kept, and its projections are computed again when the map is read.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from visualizer._intercept.check import compare, score_size, some_rows, some_weights
from visualizer._intercept.compiled import Handed, saw
from visualizer._intercept.frames import innermost_module
from visualizer._intercept.holding import Kept, hold, why_no_value
from visualizer._intercept.observation import Held, Observation
from visualizer._intercept.observers import Sighting, call_inside, depth
from visualizer._intercept.telling import tell
from visualizer._intercept.tracing import NOT_SEEN, find_spot, runs_while_compiling
from visualizer.attention import AttentionCall, Mask
from visualizer.attention.unobserved import unobserved

__all__ = ["make_encoder_layer", "make_native_multi_head"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Rest:
    """What an encoder layer does beside attention.

    Attributes:
        tensors: Weight and bias of the two norms and the two linear layers.
    """

    use_gelu: bool
    norm_first: bool
    eps: float
    tensors: tuple[Tensor, ...]

    def norm(self, index: int, x: Tensor) -> Tensor:
        weight, bias = self.tensors[2 * index : 2 * index + 2]
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def feed_forward(self, x: Tensor) -> Tensor:
        activation = functional.gelu if self.use_gelu else functional.relu
        first, first_bias, second, second_bias = self.tensors[4:]
        return functional.linear(
            activation(functional.linear(x, first, first_bias)), second, second_bias
        )

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return what the layer makes of its input and of what attention returns for it."""
        if self.norm_first:
            x = x + attended
            return x + self.feed_forward(self.norm(1, x))
        x = self.norm(0, x + attended)
        return self.norm(1, x + self.feed_forward(x))


@dataclass(slots=True, eq=False, kw_only=True)
class _ProjectedObservation(Observation):
    """A call of a fused layer of self-attention.

    Attributes:
        x: Input, shape `(batch, token, embed)`.
        weights: in_proj weight and bias, out_proj weight and bias.
        lengths: How many tokens each item has; None where all have all.
        rest: What an encoder layer does beside attention; None for attention alone.
    """

    x: Tensor
    output: Tensor
    heads: int
    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    mask: Tensor | None
    mask_type: int | None
    lengths: list[int] | None
    rest: _Rest | None = None

    def why_no_value(self) -> str | None:
        return why_no_value(self.x, self.output)

    def inputs(self) -> tuple[Tensor, ...]:
        rest = () if self.rest is None else self.rest.tensors
        return (self.x, *self.weights, *rest)

    def nbytes(self) -> tuple[int, int]:
        return self.x.numel() * self.x.element_size(), 4 * math.prod(self.shape)

    def hold(self) -> Held:
        rest = () if self.rest is None else self.rest.tensors
        kept = Kept(hold(self.x, copy=self.is_borrowed), *map(hold, (*self.weights, *rest)))
        layer = _Layer(kept, self.heads, self._mask(), self.rest)
        shortest = self.shape[2] if self.lengths is None else min(self.lengths)
        rows = some_rows(shortest)
        got = self.output[:, rows].detach().clone()
        check = _LayerCheck(layer, rows, got) if got.numel() else None
        return Held(
            read=layer.call,
            tensors=(kept.tensors[0], *layer.mask.tensors(), got),
            check=check,
            mask=layer.mask,
        )

    def _mask(self) -> Mask:
        if self.lengths is not None:
            return _within(torch.tensor(self.lengths, device=self.x.device), self.shape[2])
        if self.mask is None:
            return Mask()
        hidden = self.mask if self.mask.dtype == torch.bool else self.mask != 0
        if self.mask_type == 1:
            hidden = hidden[:, None, None, :]
        return Mask.from_tensor(~hidden)


class _Layer:
    """A fused layer's inputs, from which its queries and keys are computed when they are read."""

    def __init__(self, kept: Kept, heads: int, mask: Mask, rest: _Rest | None) -> None:
        self._kept, self._heads, self.mask = kept, heads, mask
        self._rest = rest
        self._call: AttentionCall | None = None

    def inputs(self) -> tuple[Tensor, ...]:
        """Return what attention is given, then its weights."""
        x, *weights = self._kept.read()[:5]
        if self._rest is not None and self._rest.norm_first:
            x = self._rest.norm(0, x)
        return (x, *weights)

    def call(self) -> AttentionCall:
        if self._call is None:
            x, weight, bias = self.inputs()[:3]
            embed = x.shape[-1]
            both = functional.linear(x, weight[: 2 * embed], bias[: 2 * embed])
            split = both.unflatten(-1, (2, self._heads, -1)).permute(2, 0, 3, 1, 4)
            query, key = split[0].contiguous(), split[1].contiguous()
            scale = 1 / math.sqrt(query.shape[-1])
            self._call = AttentionCall(query, key, scale=scale, mask=self.mask)
        return self._call

    def rows(self, rows: slice, weights: Tensor) -> Tensor:
        """Return rows of the layer's output, given those of its attention weights."""
        x, in_weight, in_bias, out_weight, out_bias = self.inputs()
        embed = x.shape[-1]
        mixed = weights @ x.unsqueeze(1).to(weights.dtype)  # (batch, head, row, embed)
        per_head = in_weight[2 * embed :].unflatten(0, (self._heads, -1)).to(weights.dtype)
        values = torch.einsum("bhre,hde->brhd", mixed, per_head)
        bias = in_bias[2 * embed :].unflatten(0, (self._heads, -1)).to(weights.dtype)
        values = values + bias * weights.sum(-1).transpose(1, 2).unsqueeze(-1)
        attended = functional.linear(values.flatten(2).to(x.dtype), out_weight, out_bias)
        if self._rest is None:
            return attended
        return self._rest.after(self._kept.read()[0][:, rows], attended)


class _LayerCheck:
    """Compares with some rows of a layer's output."""

    __slots__ = ("got", "layer", "rows")

    def __init__(self, layer: _Layer, rows: slice, got: Tensor) -> None:
        self.layer, self.rows, self.got = layer, rows, got

    def excess(self, call: AttentionCall, weights: Tensor | None = None) -> Tensor:
        expected = self.layer.rows(self.rows, some_weights(call, self.rows, weights))
        scores = score_size(call, self.rows).amax(1).unsqueeze(-1)
        rounding = 128 * torch.finfo(self.got.dtype).eps * (8 + scores)
        allowed = rounding * expected.abs().amax(-1, keepdim=True).clamp(min=1e-3)
        return compare(expected, self.got, allowed)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.got,)


def make_native_multi_head(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands in for `torch._native_multi_head_attention`."""

    @functools.wraps(original)
    def _native_multi_head_attention(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return _compiled(original, False, *args, **kwargs)
        if depth.inside:
            return original(*args, **kwargs)
        result = call_inside(original, *args, **kwargs)
        tell(Sighting(_observe_native, (result[0], *args), kwargs))
        return result

    return _native_multi_head_attention


def make_encoder_layer(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands in for `torch._transformer_encoder_layer_fwd`."""

    @functools.wraps(original)
    def _transformer_encoder_layer_fwd(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return _compiled(original, True, *args, **kwargs)
        if depth.inside:
            return original(*args, **kwargs)
        result = call_inside(original, *args, **kwargs)
        layer = innermost_module(sys._getframe(1))
        attention = getattr(layer, "self_attn", layer)  # which does not run, but has the path
        tell(Sighting(_observe_encoder, (result, attention, *args), kwargs, module=attention))
        return result

    return _transformer_encoder_layer_fwd


def _compiled(original: Callable[..., Any], is_encoder: bool, *args: Any, **kwargs: Any) -> Any:
    """Call a fused layer, and hand the call over when the graph runs. Compiled, never run."""
    result = original(*args, **kwargs)
    if not kwargs:
        constants = tuple(None if isinstance(arg, Tensor) else arg for arg in args)
        tensors = [arg if isinstance(arg, Tensor) else None for arg in args]
        spot = _find_spot(is_encoder, constants)
        if spot != NOT_SEEN:
            saw(spot, [result if is_encoder else result[0], *tensors], [])
    return result


@runs_while_compiling
def _find_spot(is_encoder: bool, constants: tuple[Any, ...]) -> int:
    return find_spot(functools.partial(_look, is_encoder, constants))


def _look(is_encoder: bool, constants: tuple[Any, ...], handed: Handed) -> Sighting:
    output, *tensors = handed.tensors
    given = tuple(
        constant if tensor is None else tensor
        for tensor, constant in zip(tensors, constants, strict=True)
    )
    if not is_encoder:
        return Sighting(_observe_native, (output, *given), {}, module=handed.module)
    attention = getattr(handed.module, "self_attn", handed.module)
    return Sighting(_observe_encoder, (output, attention, *given), {}, module=attention)


def _observe_native(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> Observation:
    if query is not key or key is not value:
        return Observation(
            source="multi_head_attention", refusal="its fused layer was called with three inputs"
        )
    weights = (qkv_weight, qkv_bias, proj_weight, proj_bias)
    return _observe_layer("multi_head_attention", query, output, num_head, weights, mask, mask_type)


def _observe_encoder(
    output: Tensor,
    module: Any,
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    *rest: Any,
) -> Observation:
    tensors, mask, mask_type = rest[:8], (*rest, None, None)[8], (*rest, None, None)[9]
    return _observe_layer(
        "transformer_encoder_layer",
        src,
        output,
        num_heads,
        (qkv_weight, qkv_bias, proj_weight, proj_bias),
        mask,
        mask_type,
        rest=_Rest(use_gelu=use_gelu, norm_first=norm_first, eps=eps, tensors=tensors),
        module=module,
    )


def _observe_layer(
    source: str,
    x: Tensor,
    output: Tensor,
    heads: int,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    mask: Tensor | None,
    mask_type: int | None,
    *,
    rest: _Rest | None = None,
    module: Any = None,
) -> Observation:
    lengths = None
    if x.is_nested:
        with unobserved(x.device.type):
            lengths = [len(item) for item in x.unbind()]
            x, output = x.to_padded_tensor(0.0), output.to_padded_tensor(0.0)
    batch, tokens = x.shape[:2]
    return _ProjectedObservation(
        source=source,
        module=module,
        shape=(batch, heads, tokens, tokens),
        x=x,
        output=output,
        heads=heads,
        weights=weights,
        mask=mask,
        mask_type=mask_type,
        lengths=lengths,
        rest=rest,
    )


def _within(lengths: Tensor, tokens: int) -> Mask:
    """Return a mask that hides what is behind each item's end, as queries and as keys."""
    query = torch.arange(tokens, device=lengths.device)
    end = lengths[:, None, None]
    last = torch.where(query < end, end - 1, -1)
    return Mask(spans=(torch.zeros_like(last, dtype=torch.int32), last.to(torch.int32)))
