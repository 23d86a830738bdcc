"""A ViT-S forward with all its attention maps taken: by get_local, by hand, and not at all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from benchmarks._timing import gc_off, own_code, rotated
from visualizer import get_local

__all__ = ["Forwards", "time_forwards"]

_LAYERS, _DIM, _HEADS, _TOKENS = 12, 384, 6, 197


@dataclass(frozen=True, slots=True)
class Forwards:
    """The runs of one model.

    Attributes:
        wall: Seconds of each run.
        cpu: Seconds of processor time of each run, all threads together.
    """

    wall: list[float]
    cpu: list[float]

    @property
    def wall_ms(self) -> float:
        return statistics.median(self.wall) * 1e3

    @property
    def cpu_ms(self) -> float:
        return statistics.median(self.cpu) * 1e3

    @property
    def spread_ms(self) -> float:
        """How far the median run lies above the fastest one."""
        return self.wall_ms - min(self.wall) * 1e3


class _Projections(nn.Module):
    """What the attention classes share: all but the line that makes the map."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_DIM, 3 * _DIM)
        self.proj = nn.Linear(_DIM, _DIM)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, _HEADS, _DIM // _HEADS)
        return tuple(qkv.permute(2, 0, 3, 1, 4).unbind(0))

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, tokens, _ = x.shape
        merged: torch.Tensor = self.proj(x.transpose(1, 2).reshape(batch, tokens, _DIM))
        return merged


class _Attention(_Projections):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(x)
        scores = q @ k.transpose(-2, -1) * (_DIM // _HEADS) ** -0.5
        attn = scores.softmax(-1)
        return self.merge(attn @ v)


class _CloningAttention(_Projections):
    """The same with the map cloned by hand."""

    maps: ClassVar[list[torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(x)
        scores = q @ k.transpose(-2, -1) * (_DIM // _HEADS) ** -0.5
        attn = scores.softmax(-1)
        self.maps.append(attn.detach().clone())
        return self.merge(attn @ v)


class _CapturedAttention(_Attention):
    """The same with a forward of its own, for get_local."""

    forward = own_code(_Attention.forward, "_CapturedAttention.forward")


class _Block(nn.Module):
    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(_DIM), nn.LayerNorm(_DIM)
        self.attention = attention()
        self.mlp = nn.Sequential(nn.Linear(_DIM, 4 * _DIM), nn.GELU(), nn.Linear(4 * _DIM, _DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        mapped: torch.Tensor = x + self.mlp(self.norm2(x))
        return mapped


def time_forwards(runs: int) -> dict[str, Forwards]:
    """Time the models "plain", "by hand" and "get_local", interleaved.

    Raises:
        RuntimeError: The maps that get_local took are not those that were cloned by hand.
    """
    torch.manual_seed(0)
    tokens = torch.randn(1, _TOKENS, _DIM)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(get_local.patch(_CapturedAttention.forward, "attn"))
        models = {
            "plain": _model(_Attention),
            "by hand": _model(_CloningAttention),
            "get_local": _model(_CapturedAttention),
        }
        _check_maps(models, tokens)
        return _time_models(models, tokens, runs)


def _model(attention: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(*(_Block(attention) for _ in range(_LAYERS))).eval()


def _time_models(
    models: dict[str, nn.Module], tokens: torch.Tensor, runs: int
) -> dict[str, Forwards]:
    found = {name: Forwards([], []) for name in models}
    with gc_off():
        for number in range(runs):
            for name in rotated(list(models), number):
                wall, cpu = _time_once(models[name], tokens)
                found[name].wall.append(wall)
                found[name].cpu.append(cpu)
    return found


def _time_once(forward: Callable[[torch.Tensor], Any], tokens: torch.Tensor) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    forward(tokens)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    _drop_maps()
    return wall, cpu


def _check_maps(models: dict[str, nn.Module], tokens: torch.Tensor) -> None:
    """Run every model, which also warms them up, and compare what was taken."""
    for model in models.values():
        model(tokens)
    by_hand = _CloningAttention.maps
    taken = get_local.cache[_CapturedAttention.forward.__qualname__]
    if len(taken) != _LAYERS or not all(
        torch.equal(one, torch.as_tensor(other)) for one, other in zip(by_hand, taken, strict=True)
    ):
        raise RuntimeError("get_local did not take the maps that were cloned by hand.")
    _drop_maps()


def _drop_maps() -> None:
    _CloningAttention.maps.clear()
    get_local.clear()
