"""Where the steps of a generation lie among its tokens, from how many queries and keys they have.

A cache hands a step the keys of all tokens so far, or of the last ones where it slides, and behind
them, where it is static, places that are not filled yet. So in all of them the first key of a step
is that of token `max(0, tokens so far - keys)`. Whether that is so is read off the weights, as far
as they tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visualizer.attention.call import AttentionCall
from visualizer.attention.picks import Pick, Shape
from visualizer.attention.stream import stream
from visualizer.attention.unobserved import unobserved
from visualizer.errors import NotStepsError

__all__ = ["StepPlace", "check_place", "place_across", "place_steps"]


@dataclass(frozen=True, slots=True)
class StepPlace:
    """Where a step's map lies in the whole.

    Attributes:
        queries: Its queries among those of all steps.
        keys: Its keys among all tokens.
        has_more: Whether it has keys behind these, or before them some that it does not have: then
            what it sees is to be held against its place.
    """

    queries: slice
    keys: slice
    has_more: bool = False


def place_steps(shapes: Sequence[Shape], past: int) -> list[StepPlace]:
    """Return the places of steps that attend to the tokens so far.

    Args:
        shapes: Of their maps, in order.
        past: How many tokens there were before the first.
    Raises:
        NotStepsError: Numbers of keys that no cache hands out.
    """
    places: list[StepPlace] = []
    before, window, steady = past, None, True
    for number, (_, _, queries, keys) in enumerate(shapes):
        first = max(0, before + queries - keys)
        if keys < queries or (before and keys == queries):
            raise NotStepsError(_why_not_after(number, before, queries, keys))
        if window is None and first:
            window = keys - queries  # what the step before saw of its past can't be more
            steady = not places or places[-1].keys.stop - shapes[number - 1][2] <= window
        if window is not None and not (steady and keys - queries == window):
            raise NotStepsError(
                f"map {number} has {queries} queries and {keys} keys after {before} tokens: there "
                f"are neither the keys of all of them, nor always those of the last ones. Does "
                f"another generation begin here? Then join the maps of one. Did the program take "
                f"tokens back, as assisted decoding does? Then there is no one map"
            )
        tokens = before + queries
        place = slice(before - past, tokens - past)
        places.append(StepPlace(place, slice(first, tokens), first > 0 or keys > tokens))
        before = tokens
    return places


def place_across(shapes: Sequence[Shape]) -> list[StepPlace]:
    """Return the places of steps that attend to the same keys.

    Raises:
        NotStepsError: The numbers of keys differ.
    """
    counts = sorted({shape[3] for shape in shapes})
    if len(counts) > 1:
        raise NotStepsError(
            f"maps of cross-attention have one and the same keys, and these have {counts[0]} to "
            f"{counts[-1]}. Self-attention is joined without cross=True"
        )
    places, start = [], 0
    for _, _, queries, keys in shapes:
        places.append(StepPlace(slice(start, start + queries), slice(0, keys)))
        start += queries
    return places


def check_place(source: AttentionCall | Tensor, place: StepPlace) -> str | None:
    """Say why a map can't be of the step at its place; None where it can."""
    device = source.query.device if isinstance(source, AttentionCall) else source.device
    with unobserved(device.type):
        if _sees_behind(source, place.keys.stop - place.keys.start):
            return "it gives weight to keys behind its own tokens"
        if not _sees_own(source, place):
            return "it gives no weight to its own token, as if another generation began with it"
    return None


def _sees_behind(source: AttentionCall | Tensor, own: int) -> bool:
    """Tell whether there is weight behind so many keys, but for rows that are even over all."""
    batch, heads, queries, keys = source.shape
    if keys <= own:
        return False
    if isinstance(source, AttentionCall):
        whole = Pick(slice(0, batch), slice(0, heads), slice(0, queries), slice(0, keys))
        if source.mask.reach(whole, source.shape).stop <= own:
            return False
    for piece in stream(source, at_least=keys):
        behind = (piece.weights[..., own:] > 0).any(-1)
        even = piece.weights.amax(-1) == piece.weights.amin(-1)
        if bool((behind & ~even).any()):
            return True
    return False


def _sees_own(source: AttentionCall | Tensor, place: StepPlace) -> bool:
    """Tell whether queries see their own token; a weight may be so small that it is 0."""
    batch, heads, queries, _ = source.shape
    own = place.keys.stop - place.keys.start - queries  # the first query's
    if isinstance(source, AttentionCall):
        last = slice(queries - 1, queries), slice(own + queries - 1, own + queries)
        pick = Pick(slice(0, batch), slice(0, heads), *last)
        seen = source.mask.seen(pick, pick.keys, source.query.device)
        return seen is None or bool(seen.any())
    if queries == 1:  # a generation that begins with one token gives all to that
        return own == 0 or not bool((source[..., 0] == 1).all())
    return bool((torch.diagonal(source, own, 2, 3) > 0).any())


def _why_not_after(number: int, before: int, queries: int, keys: int) -> str:
    what = f"map {number} has {queries} queries and {keys} keys"
    if keys < queries:
        return (
            f"{what}, so that its tokens can't be among the keys. Is it cross-attention? Then pass "
            f"cross=True"
        )
    return (
        f"{what}, so that it sees none of the {before} tokens before it: another generation begins "
        f"with it, or there is no cache (use_cache=False), and the last map is that of the whole. "
        f"Take the maps of one generation, as captured.attention[path][{number}:]"
    )
