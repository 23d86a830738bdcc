"""What a captured forward holds, and how much memory it takes, beside eager attention."""

from __future__ import annotations

from benchmarks._memory import can_measure_peaks, live_bytes, peak_bytes
from benchmarks._models import DIM, HEADS, KEY_HEADS, count_layers, make_llama, token_ids
from benchmarks._report import Row
from visualizer import capture

__all__ = ["held_rows"]

_MB = 1e6
_OF_QUERIES_AND_KEYS = 1.05
_OF_EAGER_MAPS = 1 / 40
_OF_EAGER_PEAK = 1 / 15
_FLOAT = 4


def held_rows(tokens: int, runs: int) -> list[Row]:
    """Return the bytes that are held after a Llama's forward, and the peaks within it."""
    title = f"Llama, {tokens} tokens"
    model = make_llama(tokens=tokens)
    before = live_bytes()
    with capture(model) as captured:
        model(token_ids(tokens))
    live, told = live_bytes() - before, captured.nbytes
    inputs = count_layers(model) * tokens * (HEADS + KEY_HEADS) * DIM * _FLOAT
    maps = _eager_bytes(tokens)
    return [
        Row(f"{title}, captured.nbytes", told / _MB, "MB"),
        Row(f"{title}, storages that capturing left alive", live / _MB, "MB"),
        Row(f"{title}, captured.nbytes / q and k", told / inputs, "x", target=_OF_QUERIES_AND_KEYS),
        Row(f"{title}, storages / q and k", live / inputs, "x", target=_OF_QUERIES_AND_KEYS),
        Row(f"{title}, storages / eager's maps", live / maps, "x", target=_OF_EAGER_MAPS),
        *_peak_rows(title, tokens, min(3, runs)),
    ]


def _eager_bytes(tokens: int) -> int:
    maps = make_llama("eager", tokens=tokens)(token_ids(tokens), output_attentions=True).attentions
    return sum(each.untyped_storage().nbytes() for each in maps)


def _peak_rows(title: str, tokens: int, repeats: int) -> list[Row]:
    ratio = f"{title}, extra peak, captured / eager"
    if not can_measure_peaks():
        return [Row(ratio, left_out="the peak of the resident memory is read from Linux's /proc")]
    kinds = ("plain", "captured", "eager")
    peaks = {kind: peak_bytes(kind, tokens, repeats) for kind in kinds}
    extra = {kind: peaks[kind] - peaks["plain"] for kind in kinds}
    rows = [Row(f"{title}, peak, {kind}", peaks[kind] / _MB, "MB") for kind in kinds]
    return [
        *rows,
        Row(ratio, extra["captured"] / max(1, extra["eager"]), "x", target=_OF_EAGER_PEAK),
    ]
