"""Attention in graphs of torch.compile: the operator that hands it over when the graph runs.

A stand-in that is compiled puts the operator behind the attention function. It returns nothing and
writes to a tensor of ours, so that no compiler takes it out, moves it behind another one, or makes
a CUDA graph of it. What it is given may be overwritten as soon as it has returned.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, library, nn

from visualizer._intercept.borrowed import are_small, copy_tensors, keep_parts
from visualizer._intercept.frames import call_within, modules_on_stack
from visualizer._intercept.observers import Inlined, Sighting, depth, find_observers
from visualizer._intercept.telling import tell, tell_errors

__all__ = [
    "Argument",
    "Handed",
    "Look",
    "Spot",
    "add_spot",
    "count_spots",
    "repeat_heads",
    "saw",
    "unrepeat_heads",
]


class Handed(NamedTuple):
    """What a graph hands over of one attention call.

    Attributes:
        module: The innermost module that calls; None outside of any.
        tensors: As `saw` was given them; good for this moment only, unless they are small.
        parts: As `saw` was given them, but ours: they may be kept, and layers share them.
        scale: What scores are multiplied with; None is the usual one.
        softcap: As in `AttentionCall`.
        dropout: The probability with which weights are dropped.
        is_causal: As the attention function was told.
    """

    module: nn.Module | None
    tensors: list[Tensor | None]
    parts: list[Tensor | None]
    scale: float | None
    softcap: float | None
    dropout: float
    is_causal: bool | None


Look = Callable[[Handed], "Sighting | None"]


@dataclass(frozen=True, slots=True, eq=False)
class Spot:
    """An attention call in a graph.

    Attributes:
        look: Makes a sighting of what is handed over; None where it is no attention after all.
        modules: Those that were in the call when the graph was made, the innermost first.
        calls: Which call each of them was, by number; None where it was not called, but a method of
            its.
        paths: Theirs from the last one of them, which is what was compiled, or a part of that;
            None where one is none of its parts.
        compiled: The class of that last one.
        argument: How to get at it where it is not on the stack, but an argument.
    """

    look: Look
    modules: tuple[weakref.ref[nn.Module], ...]
    calls: tuple[int | None, ...]
    paths: tuple[str, ...] | None
    compiled: weakref.ref[type] | None
    argument: Argument | None

    def find_modules(self, stack: Stack) -> list[nn.Module]:
        """Return the modules that are in the call now.

        Modules that are alike, each compiled or given to a compiled function, may share a graph. So
        it is the one that is called now whose parts count.
        """
        met = [module for module in (each() for each in self.modules) if module is not None]
        cls = None if self.compiled is None else self.compiled()
        if cls is None or self.paths is None:
            return met
        called = stack.modules if self.argument is None else self.argument.find(stack.frame)
        root = next((each for each in called if type(each) is cls), None)
        if root is None or (met and met[-1] is root):
            return met
        return [root.get_submodule(path) for path in self.paths]


@dataclass(frozen=True, slots=True)
class Argument:
    """What a compiled function is given, or finds around itself.

    Attributes:
        function: File, line and name, which its compiled code has, too.
        expression: Of its locals `L` and globals `G`, as Dynamo's guards have it.
    """

    function: tuple[str, int, str]
    expression: str

    @classmethod
    def of(cls, code: CodeType, expression: str) -> Argument:
        """Return what an expression of a function's stands for."""
        return cls(_name(code), expression)

    def find(self, frame: FrameType | None) -> Iterator[nn.Module]:
        """Yield it, if the function is running. No program's `locals()` is in compiled code."""
        while frame is not None:
            if _name(frame.f_code) == self.function:
                with suppress(Exception):
                    yield eval(self.expression, {"L": frame.f_locals, "G": frame.f_globals})
                return
            frame = frame.f_back


def _name(code: CodeType) -> tuple[str, int, str]:
    return code.co_filename, code.co_firstlineno, code.co_name


class Stack:
    """Who called a graph."""

    def __init__(self, frame: FrameType | None) -> None:
        self.frame = frame

    @functools.cached_property
    def modules(self) -> list[nn.Module]:
        """The modules that are being called, and what they were compiled from."""
        return [each for module in modules_on_stack(self.frame) for each in _unwrapped(module)]


def _unwrapped(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    if "_orig_mod" in module._modules:
        yield module.get_submodule("_orig_mod")


_spots: list[Spot] = []
"""By their number, which graphs have as a constant."""


def add_spot(
    look: Look, modules: list[nn.Module], calls: Sequence[int | None], argument: Argument | None
) -> int:
    """Note an attention call of a graph that is being made, and return its number.

    Args:
        look, calls, argument: As in `Spot`.
        modules: The innermost first.
    """
    paths = None
    if modules:
        known = {id(module): path for path, module in modules[-1].named_modules()}
        if all(id(module) in known for module in modules):
            paths = tuple(known[id(module)] for module in modules)
    compiled = weakref.ref(type(modules[-1])) if modules else None
    found = tuple(map(weakref.ref, modules))
    _spots.append(Spot(look, found, tuple(calls), paths, compiled, argument))
    return len(_spots) - 1


def count_spots() -> int:
    """Return how many attention calls were met in graphs."""
    return len(_spots)


def _on_run(anchor: Tensor, spot: int, *handed: Any) -> None:
    if not depth.inside and find_observers():
        with tell_errors():
            _hand_over(Stack(sys._getframe(1)), spot, *handed)


def _on_run_of_all(
    anchor: Tensor,
    spots: list[int],
    tensors: list[Tensor | None],
    tensors_of_each: list[int],
    parts: list[Tensor | None],
    parts_of_each: list[int],
    *settings: list[Any],
) -> None:
    if depth.inside or not find_observers():
        return
    stack, tensors_left, parts_left = Stack(sys._getframe(1)), iter(tensors), iter(parts)
    counts = tensors_of_each, parts_of_each
    for spot, some, few, *rest in zip(spots, *counts, *settings, strict=True):
        own = [*islice(tensors_left, some)], [*islice(parts_left, few)]
        with tell_errors():
            _hand_over(stack, spot, *own, *rest)


def _hand_over(
    stack: Stack,
    spot: int,
    tensors: list[Tensor | None],
    parts: list[Tensor | None],
    scale: float | None,
    softcap: float | None,
    dropout: float | None,
    is_causal: bool | None,
) -> None:
    found = _spots[spot]
    modules = found.find_modules(stack)
    module = modules[0] if modules else None
    parts, is_borrowed = keep_parts(parts), not are_small(tensors)
    tensors = tensors if is_borrowed else copy_tensors(tensors)
    handed = Handed(module, tensors, parts, scale, softcap, dropout or 0.0, is_causal)
    calls = zip(modules, found.calls, strict=True) if len(modules) == len(found.calls) else ()
    inlined = Inlined(spot, [(each, call) for each, call in calls if call is not None])
    call_within(modules, _tell, found.look, handed, inlined, is_borrowed)


def _tell(look: Look, handed: Handed, inlined: Inlined, is_borrowed: bool) -> None:
    sighting = look(handed)
    if sighting is not None:
        sighting.inlined, sighting.is_borrowed = inlined, is_borrowed
        tell(sighting)


_operators = library.Library("visualizer", "FRAGMENT")
_operators.define(
    "saw_attention(Tensor(a!) anchor, int spot, Tensor?[] tensors, Tensor?[] parts, float? scale, "
    "float? softcap, float? dropout, bool? is_causal) -> ()",
    tags=(torch.Tag.flexible_layout,),  # it takes tensors as they lie, and has none copied
)
_operators.impl("saw_attention", _on_run, "CompositeExplicitAutograd")
_operators.impl("saw_attention", lambda *_: None, "Meta")
_operators.define(  # several calls at once
    "saw_attentions(Tensor(a!) anchor, int[] spot, Tensor?[] tensors, int[] tensors_of_each, "
    "Tensor?[] parts, int[] parts_of_each, float?[] scale, float?[] softcap, float?[] dropout, "
    "bool?[] is_causal) -> ()",
    tags=(torch.Tag.flexible_layout,),
)
_operators.impl("saw_attentions", _on_run_of_all, "CompositeExplicitAutograd")
_operators.impl("saw_attentions", lambda *_: None, "Meta")
_operator = torch.ops.visualizer.saw_attention.default
_anchor = torch.zeros(())
"""What the operator says that it writes to. It does not."""


def saw(
    spot: int,
    tensors: Sequence[Tensor | None],
    parts: Sequence[Tensor | None],
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float | None = None,
    is_causal: bool | None = None,
) -> None:
    """Hand an attention call over when the graph runs. Compiled, never run.

    Args:
        spot: As `add_spot` returned it.
        tensors: Query, key, value and output, as the spot's `look` expects them.
        parts: Mask, bias and the like, which layers may share.
    """
    tensors = [None if tensor is None else tensor.detach() for tensor in tensors]
    parts = [None if part is None else part.detach() for part in parts]
    _operator(_anchor, spot, tensors, parts, scale, softcap, dropout, is_causal)


def repeat_heads(tensor: Tensor, groups: int) -> Tensor:
    """Return keys or values as attention repeats them, with an axis more. Compiled, never run.

    A graph has only once what is computed alike. If somebody read the keys before they are
    repeated, it would compute them in another way, and perhaps other bits.
    """
    batch, heads, tokens, dim = tensor.shape
    repeated = tensor[:, :, None, :, :].expand(batch, heads, groups, tokens, dim)
    repeated = repeated.reshape(batch, heads * groups, tokens, dim)
    return repeated.view(batch, heads, groups, tokens, dim)


def unrepeat_heads(tensor: Tensor | None) -> Tensor | None:
    """Return what `repeat_heads` was given, if this is what it returned."""
    return tensor[:, :, 0] if tensor is not None and tensor.dim() == 5 else tensor
