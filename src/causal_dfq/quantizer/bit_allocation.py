"""Which layer gets how many bits, within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from causal_dfq.errors import ConfigError

# What a file can store without waste: INT2, INT4 and INT8.
CANDIDATE_BITS = (2, 4, 8)
# The budget is counted in so many parts; a layer's bytes are rounded up to them.
_PARTS = 4096


@dataclass(frozen=True)
class LayerChoice:
    """A layer's name, how many weights it has, and what each width costs it."""

    name: str
    weights: int
    costs: Mapping[int, float]


def bytes_of(weights: int, bits: int) -> int:
    """What so many weights take at a width, whole bytes."""
    return math.ceil(weights * bits / 8)


def check_budget(weights: Sequence[int], budget: int) -> None:
    """Refuses a budget, in bytes, that layers of so many weights exceed at the fewest bits.

    Raises:
        ConfigError: they do.
    """
    smallest = sum(bytes_of(count, min(CANDIDATE_BITS)) for count in weights)
    if smallest > budget:
        raise ConfigError(
            f"a size budget of {budget:,} bytes is too small: with {min(CANDIDATE_BITS)} bits everywhere the weights "
            f"take {smallest:,} bytes; give at least that"
        )


def allocate_bits(layers: Sequence[LayerChoice], budget: int) -> dict[str, int]:
    """The widths of least summed cost whose weights take at most `budget` bytes.

    The multiple-choice knapsack problem, solved by dynamic programming over the budget in 4,096 parts [common]; that
    a sum of costs is minimized takes the layers' errors to be independent, as HAWQ-V3 (Yao et al., ICML 2021) does.

    Raises:
        ConfigError: even the fewest bits everywhere take more.
    """
    check_budget([layer.weights for layer in layers], budget)
    part = budget / _PARTS
    best: npt.NDArray[np.float64] = np.zeros(_PARTS + 1)
    chosen: list[npt.NDArray[np.int64]] = []
    for layer in layers:
        options: list[npt.NDArray[np.float64]] = []
        for bits, cost in layer.costs.items():
            taken = min(math.ceil(bytes_of(layer.weights, bits) / part), _PARTS + 1)
            options.append(np.concatenate([np.full(taken, np.inf), best[: _PARTS + 1 - taken] + cost]))
        table = np.stack(options)
        chosen.append(table.argmin(0))
        best = table.min(0)
    if not np.isfinite(best[-1]):
        # Rounded up to parts, the smallest choice alone may miss what it just meets in bytes.
        return {layer.name: min(layer.costs) for layer in layers}
    widths: dict[str, int] = {}
    left = _PARTS
    for layer, row in zip(reversed(layers), reversed(chosen), strict=True):
        bits = list(layer.costs)[int(row[left])]
        widths[layer.name] = bits
        left -= math.ceil(bytes_of(layer.weights, bits) / part)
    return {layer.name: widths[layer.name] for layer in layers}
