"""Two settings compared seed by seed: the mean difference, and an exact test of it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PairedDifference:
    """Mean of the differences of pairs, their standard deviation, their number, the test's p, and themselves."""

    mean: float
    spread: float
    pairs: int
    p: float
    differences: tuple[float, ...]


def paired_difference(firsts: Sequence[float], seconds: Sequence[float]) -> PairedDifference:
    """Of firsts less seconds, pair by pair; two or more pairs.

    p is exact, two-sided, and supposes no distribution: the share of all ways to swap the members of pairs that give
    a mean as far from 0 as the one found, or farther. With n pairs it is no smaller than 2^(1 - n).
    """
    differences = [first - second for first, second in zip(firsts, seconds, strict=True)]
    found = abs(math.fsum(differences)) * (1 - 1e-12)
    swaps = itertools.product((1, -1), repeat=len(differences))
    as_far = sum(abs(math.fsum(s * d for s, d in zip(swap, differences, strict=True))) >= found for swap in swaps)
    return PairedDifference(
        statistics.mean(differences),
        statistics.stdev(differences),
        len(differences),
        as_far / 2 ** len(differences),
        tuple(differences),
    )
