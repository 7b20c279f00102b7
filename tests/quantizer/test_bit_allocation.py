"""Bits within a budget: as cheap as the best of all choices, never larger than allowed."""

import itertools
import random

import pytest

from causal_dfq.config import SizeBudget
from causal_dfq.errors import ConfigError
from causal_dfq.quantizer.bit_allocation import CANDIDATE_BITS, LayerChoice, allocate_bits, bytes_of


def random_layers(seed: int, count: int = 6) -> list[LayerChoice]:
    draw = random.Random(seed)
    layers = []
    for number in range(count):
        costs = sorted((draw.random() ** 3 for _ in CANDIDATE_BITS), reverse=True)
        layers.append(
            LayerChoice(f"layer{number}", draw.randrange(1, 5000), dict(zip(CANDIDATE_BITS, costs, strict=True)))
        )
    return layers


def size_of(layers: list[LayerChoice], widths: dict[str, int]) -> int:
    return sum(bytes_of(layer.weights, widths[layer.name]) for layer in layers)


def cost_of(layers: list[LayerChoice], widths: dict[str, int]) -> float:
    return sum(layer.costs[widths[layer.name]] for layer in layers)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 1.0])
def test_no_choice_of_less_room_costs_less(seed: int, share: float) -> None:
    layers = random_layers(seed)
    budget = int(share * sum(layer.weights for layer in layers)) + len(layers)
    widths = allocate_bits(layers, budget)
    assert size_of(layers, widths) <= budget
    # Rounding up to parts may cost a layer's share of a part, no more.
    room = budget * (1 - len(layers) / 4096)
    choices = itertools.product(CANDIDATE_BITS, repeat=len(layers))
    named = [{layer.name: bits for layer, bits in zip(layers, choice, strict=True)} for choice in choices]
    best = min(cost_of(layers, choice) for choice in named if size_of(layers, choice) <= room)
    assert cost_of(layers, widths) <= best + 1e-12


def test_the_smallest_choice_is_found_where_nothing_else_fits() -> None:
    layers = random_layers(0, 40)
    smallest = size_of(layers, {layer.name: 2 for layer in layers})
    assert set(allocate_bits(layers, smallest).values()) == {2}
    with pytest.raises(ConfigError, match=f"{smallest:,} bytes"):
        allocate_bits(layers, smallest - 1)


def test_a_budget_that_8_bits_meet_gives_8_bits_to_the_last_byte() -> None:
    for layers in (random_layers(3, 21), random_layers(4, 300)):
        assert set(allocate_bits(layers, sum(layer.weights for layer in layers)).values()) == {8}


def test_bits_that_gain_nothing_are_kept_where_there_is_room() -> None:
    layers = [LayerChoice(f"layer{number}", 100, dict.fromkeys(CANDIDATE_BITS, 0.0)) for number in range(5)]
    assert set(allocate_bits(layers, 500).values()) == {8}
    assert size_of(layers, allocate_bits(layers, 300)) == 300


def test_costs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer0.*choose bits yourself"):
        allocate_bits([LayerChoice("layer0", 100, {2: float("nan"), 4: 0.0, 8: 0.0})], 100)


@pytest.mark.parametrize(("text", "expected"), [("0.6", 600), ("1", 1000), ("2KB", 2048), ("500B", 500)])
def test_a_budget_is_a_share_or_bytes(text: str, expected: int) -> None:
    assert SizeBudget.parse(text).in_bytes(1000) == expected


@pytest.mark.parametrize("text", ["0", "1.5", "-0.5", "nan", "half", "0KB"])
def test_another_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="600KB"):
        SizeBudget.parse(text)
