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
        ConfigError: even the fewest bits everywhere take more, or a cost is not finite.
    """
    endless = [layer.name for layer in layers if not all(map(math.isfinite, layer.costs.values()))]
    if endless:
        raise ConfigError(
            f"the cost of bits cannot be told for {endless[0]}: on synthetic images logits are not finite; choose "
            "bits yourself, like w4a8"
        )
    check_budget([layer.weights for layer in layers], budget)
    part = budget / _PARTS
    best: npt.NDArray[np.float64] = np.zeros(_PARTS + 1)
    chosen: list[npt.NDArray[np.int64]] = []
    for layer in layers:
        options: list[npt.NDArray[np.float64]] = []
        # Of equal costs the first is taken: bits that cost nothing are kept.
        for bits in _wide_first(layer):
            cost = layer.costs[bits]
            taken = min(math.ceil(bytes_of(layer.weights, bits) / part), _PARTS + 1)
            options.append(np.concatenate([np.full(taken, np.inf), best[: _PARTS + 1 - taken] + cost]))
        table = np.stack(options)
        chosen.append(table.argmin(0))
        best = table.min(0)
    widths = {layer.name: min(layer.costs) for layer in layers}
    # Rounded up to parts, the smallest choice alone may miss what it just meets in bytes.
    if np.isfinite(best[-1]):
        left = _PARTS
        for layer, row in zip(reversed(layers), reversed(chosen), strict=True):
            widths[layer.name] = _wide_first(layer)[int(row[left])]
            left -= math.ceil(bytes_of(layer.weights, widths[layer.name]) / part)
    return _widened(layers, widths, budget)


def _wide_first(layer: LayerChoice) -> list[int]:
    return sorted(layer.costs, reverse=True)


def _widened(layers: Sequence[LayerChoice], widths: dict[str, int], budget: int) -> dict[str, int]:
    """Gives what parts have left over to the layers that gain most for each byte."""
    widths = dict(widths)
    free = budget - sum(bytes_of(layer.weights, widths[layer.name]) for layer in layers)
    gains = []
    for layer in layers:
        now = widths[layer.name]
        for bits in _wide_first(layer):
            more = bytes_of(layer.weights, bits) - bytes_of(layer.weights, now)
            if bits > now:
                gains.append(((layer.costs[now] - layer.costs[bits]) / max(more, 1), layer, bits))
    for _, layer, bits in sorted(gains, key=lambda gain: gain[0], reverse=True):
        more = bytes_of(layer.weights, bits) - bytes_of(layer.weights, widths[layer.name])
        if bits > widths[layer.name] and more <= free and layer.costs[bits] <= layer.costs[widths[layer.name]]:
            widths[layer.name] = bits
            free -= more
    return widths
