"""Timing several pieces of work side by side, so that a noisy machine meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median over the repeats, and the quartiles."""

    median: float
    lower_quartile: float
    upper_quartile: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Of at least two measurements."""
        lower, _, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(statistics.median(seconds), lower, upper, len(seconds))


def interleave(work: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each call: `repeats` turns, each piece of work once a turn, in an order that rotates.

    The first `warm_up` turns are not counted.
    """
    names = list(work)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warm_up + repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            started = time.perf_counter()
            work[name]()
            elapsed = time.perf_counter() - started
            if turn >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def paired_ratio(numerator: list[float], denominator: list[float]) -> Timing:
    """Of the ratios of two pieces of work, turn by turn."""
    return Timing.of([first / second for first, second in zip(numerator, denominator, strict=True)])
