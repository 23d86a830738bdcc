"""Time calls against each other by their processor time, run by run, in rotated order."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks._report import Row
from benchmarks._timing import gc_off, rotated

__all__ = ["Runs", "cpu_time", "interleave", "ratio_rows", "time_rows"]


@dataclass(frozen=True, slots=True)
class Runs:
    """What one contender took, in seconds of processor time a call."""

    seconds: tuple[float, ...]

    @property
    def ms(self) -> float:
        return statistics.median(self.seconds) * 1e3

    @property
    def spread_ms(self) -> float:
        """How far the median lies above the fastest run."""
        return self.ms - min(self.seconds) * 1e3


def cpu_time(call: Callable[[], object], times: int = 1) -> float:
    """Return the seconds of processor time that a call takes, all threads together."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def interleave(contenders: Mapping[str, Callable[[], float]], runs: int) -> dict[str, Runs]:
    """Run contenders in turn; a first round warms up.

    Args:
        contenders: Each runs once, and returns the seconds that count.
        runs: How many rounds.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    with gc_off():
        for number in range(runs + 1):
            for name in rotated(list(contenders), number):
                gc.collect()
                elapsed = contenders[name]()
                if number:
                    found[name].append(elapsed)
    return {name: Runs(tuple(seconds)) for name, seconds in found.items()}


def time_rows(title: str, found: Mapping[str, Runs]) -> list[Row]:
    """Return a row for each contender, with the median of its runs."""
    return [Row(f"{title}, {name}", runs.ms, "ms", runs.spread_ms) for name, runs in found.items()]


def ratio_rows(name: str, ours: Runs, theirs: Runs, target: float | None = None) -> list[Row]:
    """Return the ratio of the medians, and the median of each run's own ratio."""
    each = [our / their for our, their in zip(ours.seconds, theirs.seconds, strict=True)]
    return [
        Row(name, ours.ms / theirs.ms, "x", target=target),
        Row(f"{name}, run by run", statistics.median(each), "x"),
    ]
