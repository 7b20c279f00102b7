"""What a layer's bits cost: against a reference in float64, and the bits that are chosen by it."""

import pytest
import torch

from causal_dfq.network.fold import LAYERS
from causal_dfq.quantizer.bit_allocation import bytes_of
from causal_dfq.quantizer.ranges import weight_scale
from causal_dfq.training.budget import Budget
from causal_dfq.training.checkpoint import restore_state, run_state
from causal_dfq.training.sensitivity import (
    choose_weight_bits,
    closed_form_sensitivities,
    layer_sensitivities,
    quantized_layers,
)
from tests.training.test_equilibrium import snapshot, started

SMALL = Budget(warmup_steps=1, equilibrium_rounds=0, finish_rounds=1, student_steps=1)


def test_it_is_the_kl_of_answers_with_one_weight_rounded_and_leaves_the_network_as_it_was() -> None:
    run = started(SMALL, "w4a8")
    images = run.images_apart(1)
    before = snapshot(run.views.folded)
    found = layer_sensitivities(run.views, images, (2, 8))
    assert all(map(torch.equal, before, snapshot(run.views.folded)))
    name = list(found)[1]
    weight = run.views.folded.get_submodule(f"{LAYERS}.{name}").weight
    with torch.no_grad():
        exact = run.views.folded(images).double().log_softmax(1)
        kept = weight.clone()
        scale = weight_scale(kept, 2).view(-1, *[1] * (kept.ndim - 1))
        weight.copy_((kept / scale).round().clamp(-2, 1) * scale)
        rounded = run.views.folded(images).double().log_softmax(1)
        weight.copy_(kept)
    expected = float((exact.exp() * (exact - rounded)).sum(1).mean())
    assert found[name][2] == pytest.approx(expected, rel=1e-3)
    assert all(costs[8] < 0.05 * costs[2] for costs in found.values())


def test_layers_are_measured_at_their_own_bits_where_none_are_given() -> None:
    run = started(SMALL, "w3a8")
    assert {tuple(costs) for costs in layer_sensitivities(run.views, run.images_apart(1)).values()} == {(3,)}


def test_a_layer_that_is_rounded_in_closed_form_costs_less_than_its_nearest_codes() -> None:
    run = started(SMALL, "w4a8")
    images = run.images_apart(8)
    before = snapshot(run.views.folded)
    found = closed_form_sensitivities(run.views, images[::4], images[1::2], (3,), seed=0)
    assert all(map(torch.equal, before, snapshot(run.views.folded)))
    nearest = layer_sensitivities(run.views, images[::4], (3,))
    assert list(found) == list(nearest)
    assert sum(costs[3] for costs in found.values()) < 0.8 * sum(costs[3] for costs in nearest.values())


def test_the_weights_take_no_more_than_the_budget_and_a_checkpoint_keeps_the_bits() -> None:
    run, resumed = started(SMALL, "w8a8"), started(SMALL, "w8a8")
    layers = dict(quantized_layers(run.views))
    sizes = {name: run.quantized.get_submodule(f"{LAYERS}.{name}").weight.numel() for name in layers}
    budget = int(0.4 * sum(sizes.values()))
    images = run.images_apart(2)
    choose_weight_bits(run.views, images[::2], images[1::2], budget, seed=0)
    bits = {name: quantizer.bits for name, quantizer in layers.items()}
    assert len(set(bits.values())) > 1
    assert sum(bytes_of(sizes[name], width) for name, width in bits.items()) <= budget
    for name, quantizer in layers.items():
        codes = quantizer.freeze(run.quantized.get_submodule(f"{LAYERS}.{name}").weight).codes
        assert int(codes.abs().max()) <= 2 ** (bits[name] - 1)
    restore_state(resumed, run_state(run))
    assert {name: quantizer.bits for name, quantizer in quantized_layers(resumed.views)} == bits
