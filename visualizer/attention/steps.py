"""The maps of the steps of a generation, joined into one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from visualizer.attention.attention_map import AttentionMap
from visualizer.attention.gradient import OutputGradient
from visualizer.attention.joined import Joined, Part
from visualizer.attention.picks import Shape
from visualizer.attention.placing import StepPlace, check_place, place_across, place_steps
from visualizer.attention.record import MapRecord, read_intact
from visualizer.errors import (
    MapRefusedError,
    NoGradientError,
    NotStepsError,
    OutOfRangeError,
    OverwrittenError,
)

__all__ = ["join_steps"]


@dataclass(frozen=True, slots=True, eq=False)
class JoinedRecord:
    """A map whose rows are those of others.

    Attributes:
        records: Of the steps.
        places: Where they lie.
        keys: How many keys the whole has.
    """

    records: tuple[MapRecord, ...]
    places: tuple[StepPlace, ...]
    keys: int

    @property
    def shape(self) -> Shape:
        """Sizes of batch, head, query, key."""
        batch, heads = self.records[0].shape[:2]
        return batch, heads, self.places[-1].queries.stop, self.keys

    @property
    def module_path(self) -> str | None:
        """Of the module that called."""
        return self.records[0].module_path

    @property
    def layer(self) -> int | None:
        """Its index."""
        return self.records[0].layer

    @property
    def call(self) -> int:
        """Index of the first call."""
        return self.records[0].call

    @property
    def step(self) -> int | None:
        """Index of the root model's first forward."""
        return self.records[0].step

    @property
    def source(self) -> str:
        """How the calls were seen; "joined" where that differs."""
        sources = {record.source for record in self.records}
        return sources.pop() if len(sources) == 1 else "joined"

    @property
    def is_causal(self) -> bool | None:
        """True if that is known of all steps; else the weights tell."""
        steps = zip(self.records, self.places, strict=True)
        return True if all(_is_causal(record, place) for record, place in steps) else None

    @property
    def confirmed(self) -> bool | None:
        """True if all steps are, False if one is refuted."""
        found = {record.confirmed for record in self.records}
        if False in found:
            return False
        return None if None in found else True

    def read(self) -> Joined:
        """Return what the steps are computed from.

        Raises:
            MapRefusedError: One of them can't be rebuilt exactly.
            OverwrittenError: A tensor was written to since.
        """
        parts = []
        for record, place in zip(self.records, self.places, strict=True):
            source = read_intact(record)
            assert not isinstance(source, Joined)
            parts.append(Part(source, place.queries, place.keys))
        return Joined(tuple(parts), self.keys)

    def read_gradient(self) -> OutputGradient:
        """Raise, since `generate` runs without autograd."""
        raise NoGradientError(
            "a map that steps of a generation were joined into has no gradient; run the model on "
            "the whole text at once, within capture(model, gradients=True)"
        )


def join_steps(maps: Sequence[AttentionMap], *, past: int = 0, cross: bool = False) -> AttentionMap:
    """Join the maps of a module, one for each step of a generation, into that of all tokens.

    Its rows are those of the steps, in order: of the prompt, in one or several pieces, and then one
    for each token. Keys that a step did not have, as those that came later or that a sliding window
    has left behind, have weight 0; places of a static cache that are not filled are left out.
    Nothing is copied or computed before it is asked for.

    The last token that was generated was never a query, and so is not in the map. Under beam search
    an item of the batch is a beam, and beams change places between steps without a trace here: each
    row is right, but rows of an item need not be those of one text.

    Args:
        maps: The maps of one module, in order, from one generation.
        past: How many tokens a cache had before the first of them. These are keys without queries.
        cross: The steps share their keys, as in the cross-attention of an encoder and a decoder.
            That can't be told from self-attention with certainty.
    Returns:
        A map of shape `(batch, head, query, past + query)`, or `(batch, head, query, key)` with
        `cross`; its `call` and `step` are the first map's.
    Raises:
        NotStepsError: Maps of several modules, batches or generations, or with gaps between them.
        OutOfRangeError: `past` is no number of tokens.
        TypeError: Something else than maps.

    Example:
        >>> prompt = AttentionMap.from_weights([[1.0, 0.0], [0.5, 0.5]])
        >>> step = AttentionMap.from_weights([[0.25, 0.25, 0.5]])
        >>> join_steps([prompt, step])[0, 0]
        array([[1.  , 0.  , 0.  ],
               [0.5 , 0.5 , 0.  ],
               [0.25, 0.25, 0.5 ]])
    """
    steps = _checked(maps, past, cross)
    shapes = [step.shape for step in steps]
    places = place_across(shapes) if cross else place_steps(shapes, past)
    for number, (step, place) in enumerate(zip(steps, places, strict=True)):
        if place.has_more:
            _check(number, step, place)
    record = JoinedRecord(tuple(step.record for step in steps), tuple(places), places[-1].keys.stop)
    return AttentionMap(record)


def _checked(maps: Sequence[AttentionMap], past: int, cross: bool) -> list[AttentionMap]:
    """Return the maps, if what is known of them fits together."""
    steps = list(maps)
    for each in steps:
        if not isinstance(each, AttentionMap):
            raise TypeError(
                f"join_steps() takes the attention maps of one module, as "
                f"captured.attention['model.layers.0.self_attn'], not {type(each).__name__}. "
                f"AttentionMap.from_weights(array) makes one of an array"
            )
        if isinstance(each.record, JoinedRecord):
            raise NotStepsError(f"{each!r} is joined already; give the maps of all steps at once")
    if not steps:
        raise NotStepsError("there is no map to join")
    if isinstance(past, bool) or operator.index(past) < 0 or (past and cross):
        raise OutOfRangeError(
            f"past is {past!r}; expected the number of tokens that the cache had before, and 0 "
            f"with cross=True"
        )
    _check_alike(steps)
    _check_order(steps)
    return steps


def _check_alike(steps: list[AttentionMap]) -> None:
    first = steps[0]
    for number, step in enumerate(steps):
        if step.module_path != first.module_path:
            raise NotStepsError(
                f"maps of several modules, {first.module_path!r} and {step.module_path!r}, are not "
                f"steps of one. Take those of one module, captured.attention[{first.module_path!r}]"
            )
        if step.shape[:2] != first.shape[:2]:
            raise NotStepsError(
                f"map {number} has batch and heads {step.shape[:2]}, map 0 has {first.shape[:2]}; "
                f"the steps of one generation are alike in both"
            )


def _check_order(steps: list[AttentionMap]) -> None:
    calls = [step.call for step in steps]
    if len(set(calls)) == 1:  # maps of arrays, which have no numbers
        return
    for number in range(1, len(steps)):
        before, after = steps[number - 1], steps[number]
        backwards = None not in (before.step, after.step) and (after.step or 0) < (before.step or 0)
        if after.call != before.call + 1 or backwards:
            raise NotStepsError(
                f"map {number} is call {after.call} of {after.module_path!r} (step {after.step}), "
                f"and the one before is call {before.call} (step {before.step}): the calls of a "
                f"generation follow each other. capture() keeps all of them, but with keep='last' "
                f"or keep=n"
            )


def _is_causal(record: MapRecord, place: StepPlace) -> bool:
    """Tell whether it is known that no query sees a key behind its own, with no keys cut off."""
    _, _, queries, keys = record.shape
    if place.keys.stop - place.keys.start < keys:
        return False
    return queries == 1 or record.is_causal is True


def _check(number: int, step: AttentionMap, place: StepPlace) -> None:
    """Hold what a map sees against its place; one that can't be read says so when it is."""
    with suppress(OverwrittenError, MapRefusedError):
        source = read_intact(step.record)
        assert not isinstance(source, Joined)
        reason = check_place(source, place)
        if reason is not None:
            queries, keys = step.shape[2:]
            raise NotStepsError(
                f"map {number}, call {step.call}, with {queries} queries and {keys} keys, can't be "
                f"of the tokens {place.keys.stop - queries} to {place.keys.stop - 1}: {reason}. "
                f"Did the cache have tokens before the first map? Then pass past=…. Is it "
                f"cross-attention? Then cross=True. Were calls before it not kept, or are there "
                f"several generations? Then take the maps of one, captured.attention[path][a:b]"
            )
