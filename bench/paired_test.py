"""Two settings compared seed by seed: the mean difference, and an exact test of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MOST_COUNTED = 20
_DRAWN = 1_000_000


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

    p is two-sided and supposes no distribution: the share of ways to swap the members of pairs that give a mean as far
    from 0 as the one found, or farther. Of up to 20 pairs all ways are counted, and p is exact, no smaller than
    2^(1 - n) with n pairs; of more, a million ways at random.
    """
    differences = [first - second for first, second in zip(firsts, seconds, strict=True)]
    found = abs(math.fsum(differences)) * (1 - 1e-12)
    sums = _sums_of_swaps(np.array(differences))
    return PairedDifference(
        statistics.mean(differences),
        statistics.stdev(differences),
        len(differences),
        float((np.abs(sums) >= found).mean()),
        tuple(differences),
    )


def _sums_of_swaps(differences: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sums under all ways to swap pairs, or under as many as are drawn."""
    sums = np.zeros(1)
    if len(differences) <= _MOST_COUNTED:
        for difference in differences:
            sums = np.concatenate([sums + difference, sums - difference])
        return sums
    random = np.random.default_rng(0)
    sums = np.zeros(_DRAWN)
    for difference in differences:
        sums += random.choice((-difference, difference), _DRAWN)
    return sums
