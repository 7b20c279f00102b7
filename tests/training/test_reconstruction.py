"""Reconstruction unit by unit: that it brings Q's values nearer to P's, and what it leaves behind."""

from dataclasses import replace

import pytest
import torch

from causal_dfq.network.fold import LAYERS
from causal_dfq.quantizer.modules import ActivationQuantizer, WeightQuantizer
from causal_dfq.quantizer.placement import WEIGHT_QUANTIZERS
from causal_dfq.training.budget import Budget
from causal_dfq.training.equilibrium import RECONSTRUCTION, Equilibrium
from causal_dfq.training.reconstruction import Schedule, mixed, reconstruction
from causal_dfq.training.unit_walk import reconstruction_units
from tests.training.test_equilibrium import snapshot, started

SMALL = Budget(warmup_steps=1, equilibrium_rounds=1, finish_rounds=1, student_steps=1, reconstruction_iterations=60)
# The warm-up and the calibration come before.
FIRST = SMALL.warmup_steps + 1


def calibrated(bits: str = "w3a4") -> tuple[Equilibrium, torch.Tensor]:
    run = started(SMALL, bits)
    for step in range(FIRST):
        run.run_step(step)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return run, torch.cat([run.student_images(random).images for _ in range(3)])


def test_each_unit_comes_nearer_to_its_target() -> None:
    run, images = calibrated()
    walk = reconstruction(run.views, images, Schedule(300, dropped=0.0), 0)
    fits = [walk.fit_next() for _ in walk.units]
    # The last unit may have little to gain; the first sees nothing but its own rounding.
    assert fits[0].after < 0.9 * fits[0].before
    assert all(fit.after < 1.05 * fit.before for fit in fits)


def test_weights_end_on_their_grids_and_every_layer_is_fitted() -> None:
    run, images = calibrated()
    before = {
        name: layer.weight.detach().clone() for name, layer in run.quantized.get_submodule(LAYERS).named_children()
    }
    walk = reconstruction(run.views, images, Schedule(20), 0)
    for _ in walk.units:
        walk.fit_next()
    for name, layer in run.quantized.get_submodule(LAYERS).named_children():
        quantizer = run.quantized.get_submodule(f"{WEIGHT_QUANTIZERS}.{name}")
        assert isinstance(quantizer, WeightQuantizer)
        torch.testing.assert_close(quantizer(layer.weight).detach(), layer.weight.detach(), rtol=1e-4, atol=1e-6)
        assert not torch.equal(layer.weight, before[name])
    assert all(parameter.grad is None for parameter in run.quantized.parameters())


def test_the_same_seed_gives_the_same_bits_and_skipping_meets_the_same_values() -> None:
    weights = []
    for is_resumed in (False, True):
        run, images = calibrated()
        schedule = Schedule(10)
        walk = reconstruction(run.views, images, schedule, 0)
        walk.fit_next()
        if is_resumed:
            walk = reconstruction(run.views, images, schedule, 0)
            walk.skip_to(1)
        while walk.done < len(walk.units):
            walk.fit_next()
        weights.append(snapshot(run.quantized))
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_it_is_a_phase_of_a_run_with_a_step_for_each_unit() -> None:
    run = started(SMALL)
    run.recipe = replace(run.recipe, reconstruction_images=64)
    units = reconstruction_units(run.views.folded)
    names = [run.phase(step).name for step in range(run.total_steps)]
    assert names[FIRST : FIRST + len(units)] == [RECONSTRUCTION] * len(units)
    assert RECONSTRUCTION not in names[FIRST + len(units) :]
    generator = None
    for step in range(FIRST + len(units)):
        metrics = run.run_step(step)
        generator = generator or snapshot(run.synthesis.state)
    assert set(metrics) == {"unit_error_before", "unit_error_after"}
    assert all(torch.equal(a, b) for a, b in zip(generator, snapshot(run.synthesis.state), strict=True))
    run.run_step(FIRST + len(units))


def test_a_share_of_the_values_passes_unrounded() -> None:
    random = torch.Generator().manual_seed(0)
    values, others = torch.zeros(10_000), torch.ones(10_000)
    assert mixed(values, others, 0.5, random).mean().item() == pytest.approx(0.5, abs=0.03)
    assert mixed(values, others, 0.0, random) is values


def test_nothing_drives_the_rounding_at_first_then_ever_more_sharply() -> None:
    schedule = Schedule(100)
    assert schedule.sharpness_at(19) is None
    assert schedule.sharpness_at(20) == pytest.approx(20)
    assert schedule.sharpness_at(60) == pytest.approx(11)
    assert schedule.sharpness_at(100) == pytest.approx(2)


def test_step_sizes_of_activations_are_learned_too() -> None:
    run, images = calibrated()
    before = [m.log_scale.detach().clone() for m in run.quantized.modules() if isinstance(m, ActivationQuantizer)]
    reconstruction(run.views, images, Schedule(20), 0).fit_next()
    after = [m.log_scale.detach() for m in run.quantized.modules() if isinstance(m, ActivationQuantizer)]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
