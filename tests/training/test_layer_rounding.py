"""Layers rounded in closed form: each unit comes nearer to P's, within the grids, and a run does it once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_dfq.config import Protocol, make_options
from causal_dfq.network.fold import LAYERS
from causal_dfq.pipeline import prepare
from causal_dfq.quantizer.affine import integer_range
from causal_dfq.quantizer.second_order import Moments
from causal_dfq.training import layer_rounding as layer_rounding_module
from causal_dfq.training.budget import LARGE_IMAGE_BUDGETS, Budget
from causal_dfq.training.equilibrium import ROUNDING, Equilibrium
from causal_dfq.training.layer_rounding import RoundingSettings, layer_rounding, moments_in_p, quantizer_of
from causal_dfq.training.unit_walk import reconstruction_units
from causal_dfq.training.views import NetworkViews
from tests.networks import trained
from tests.training.test_equilibrium import snapshot, started

SMALL = Budget(warmup_steps=2, equilibrium_rounds=1, finish_rounds=1, student_steps=1, rounding_images=128)
# The warm-up and the calibration come before.
FIRST = SMALL.warmup_steps + 1


def calibrated(bits: str, protocol: Protocol = "deploy") -> tuple[Equilibrium, torch.Tensor]:
    run = started(SMALL, bits, protocol=protocol)
    for step in range(FIRST):
        run.run_step(step)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return run, torch.cat([run.student_images(random).images for _ in range(3)])


@pytest.mark.parametrize("protocol", ["deploy", "gdfq", "genie"])
def test_units_come_nearer_to_their_targets_and_codes_stay_in_their_range(protocol: Protocol) -> None:
    run, images = calibrated("w3a8", protocol)
    walk = layer_rounding(run.views, images, RoundingSettings(), 0)
    fits = [walk.fit_next() for _ in walk.units]
    assert sum(fit.after for fit in fits) < 0.9 * sum(fit.before for fit in fits)
    for name, layer in run.quantized.get_submodule(LAYERS).named_children():
        quantizer = quantizer_of(run.quantized, name)
        assert quantizer is not None
        codes = quantizer.freeze(layer.weight).codes
        lowest, highest = integer_range(quantizer.bits, is_signed=True)
        assert lowest <= int(codes.min()) < int(codes.max()) <= highest


class MomentsSeen:
    """Notes of how many samples each layer's moments are."""

    def __init__(self) -> None:
        self.counts: list[float] = []
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> MomentsSeen:
        usual = layer_rounding_module.layer_moments

        def noting(*arguments: Any) -> Moments:
            found = usual(*arguments)
            self.counts.append(float(found.own[0, -1, -1]))
            return found

        self._patch.setattr(layer_rounding_module, "layer_moments", noting)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


class TokenByToken(nn.Module):
    """A linear layer on (tokens, images, channels), as attention reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.fc = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.conv(images).flatten(2).permute(2, 0, 1)
        return self.fc(torch.relu(self.mix(tokens)).mean(0))


@pytest.mark.parametrize("count", [1, 129])
def test_all_tokens_of_all_images_are_seen_in_whatever_order_a_layer_reads_them(count: int) -> None:
    options = make_options(bits="w4a8", input_shape=(3, 8, 8))
    prepared = prepare(trained(TokenByToken()), options)
    views = NetworkViews(prepared.captured, prepared.folded, prepared.quantized)
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), views.in_float32():
        found = moments_in_p(views, "linear", images, 10**6, torch.Generator())
        tokens = prepared.folded.get_submodule(LAYERS).conv2d
        rows = functional.conv2d(images, tokens.weight, tokens.bias, 2).movedim(1, -1).reshape(-1, 6).double()
    assert found.own[0, -1, -1] == len(rows)
    torch.testing.assert_close(found.own[0, :-1, :-1], rows.T @ rows, rtol=1e-4, atol=1e-3)


def test_no_more_images_are_held_than_memory_allows() -> None:
    run, images = calibrated("w3a8")
    # Eight maps of 8x8 are the largest tensor between two units.
    settings = RoundingSettings(largest_bytes=40 * 8 * 8 * 8 * 4)
    walks = [layer_rounding(run.views, images, settings, seed) for seed in (0, 0, 1)]
    seen = [walk._exact for walk in walks]
    assert [len(held) for held in seen] == [40] * 3
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    rows = {tuple(image.flatten().tolist()) for image in images}
    assert all(tuple(image.flatten().tolist()) in rows for image in seen[0])
    fits = [walks[0].fit_next() for _ in walks[0].units]
    assert sum(fit.after for fit in fits) < sum(fit.before for fit in fits)


def test_a_layer_of_few_inputs_is_looked_at_in_fewer_places() -> None:
    settings = RoundingSettings(samples=1000, samples_of_input=20)
    assert [settings.samples_of(fan_in) for fan_in in (9, 49, 50, 51)] == [180, 980, 1000, 1000]
    run, images = calibrated("w3a8")
    looked_at = []
    for samples_of_input in (1, 512):
        settings = RoundingSettings(samples_of_input=samples_of_input)
        walk = layer_rounding(run.views, images, settings, 0)
        with MomentsSeen() as seen:
            for _ in walk.units:
                walk.fit_next()
        looked_at.append(seen.counts)
    # One place of each image, all 64 of them, and the rows of the classifier.
    count = len(images)
    assert looked_at == [[count, count, count], [64 * count, 64 * count, count]]


def without_rounds(**values: int) -> Budget:
    return replace(SMALL, equilibrium_rounds=0, finish_rounds=0, **values)


def test_where_rounding_alone_fits_q_the_scenes_that_it_cannot_hold_give_their_steps_to_the_others() -> None:
    run = started(without_rounds(imprint_batches=5, imprint_iterations=3), "w3a8")
    of_an_image = 8 * 8 * 8 * 4
    run.use_recipe(replace(run.recipe, pool_batch=10))
    budgets = []
    for images in (60, 50, 48, 20, 1):
        run.rounding = RoundingSettings(largest_bytes=images * of_an_image)
        run.leave_out_unseen_imprints()
        assert run.synthesis.imprints is not None
        assert len(run.synthesis.imprints) == 10 * run.budget.imprint_batches
        budgets.append((run.budget.imprint_batches, run.budget.imprint_iterations))
    assert budgets == [(5, 3), (5, 3), (5, 3), (2, 7), (1, 14)]


def test_no_scene_is_changed_more_often_than_at_best() -> None:
    run = started(without_rounds(imprint_batches=20, imprint_iterations=10), "w3a8")
    run.rounding = RoundingSettings(largest_bytes=1)
    run.leave_out_unseen_imprints()
    best = LARGE_IMAGE_BUDGETS["best"].imprint_iterations
    assert (run.budget.imprint_batches, run.budget.imprint_iterations) == (1, best)


def test_where_rounds_train_q_all_scenes_are_imprinted() -> None:
    run = started(replace(SMALL, imprint_batches=5, imprint_iterations=3), "w3a8")
    run.rounding = RoundingSettings(largest_bytes=1)
    run.leave_out_unseen_imprints()
    assert run.budget.imprint_batches == 5


def test_settings_within_a_limit_hold_what_a_walk_takes() -> None:
    assert RoundingSettings.within(1e12) == RoundingSettings()
    few = RoundingSettings.within(2**30)
    assert 4 * few.largest_bytes + 6 * 8 * few.largest_fan_in**2 <= 2**30
    assert few.largest_bytes > 2**26
    assert few.largest_fan_in > 2000


def test_it_is_a_phase_with_a_step_for_each_unit_after_which_rates_follow_the_step_sizes() -> None:
    run, _ = calibrated("w3a8")
    units = len(reconstruction_units(run.views.folded))
    assert [run.phase(FIRST + step).name for step in range(units)] == [ROUNDING] * units
    assert run.phase(FIRST + units).name != ROUNDING
    for step in range(FIRST, FIRST + units):
        metrics = run.run_step(step)
    assert set(metrics) == {"unit_error_before", "unit_error_after"}
    name, layer = next(iter(run.quantized.get_submodule(LAYERS).named_children()))
    quantizer = quantizer_of(run.quantized, name)
    assert quantizer is not None
    groups = run.student_optimizer.param_groups
    (rate,) = [group["base_lr"] for group in groups if group["params"][0] is layer.weight]
    assert rate == pytest.approx(run.recipe.weight_lr * float(quantizer.scale.detach().mean()))


def test_without_rounding_images_there_is_no_such_phase() -> None:
    run = started(SMALL, "w3a8")
    before = run.total_steps
    run.budget = replace(run.budget, rounding_images=0)
    assert run.total_steps == before - len(reconstruction_units(run.views.folded))


def test_the_same_seed_gives_the_same_bits_and_skipping_meets_the_same_values() -> None:
    weights = []
    for is_resumed in (False, True):
        run, images = calibrated("w3a4")
        walk = layer_rounding(run.views, images, RoundingSettings(), 0)
        walk.fit_next()
        if is_resumed:
            walk = layer_rounding(run.views, images, RoundingSettings(), 0)
            walk.skip_to(1)
        while walk.done < len(walk.units):
            walk.fit_next()
        weights.append(snapshot(run.quantized))
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_weights_that_are_not_rounded_stay() -> None:
    run, images = calibrated("w32a4")
    before = snapshot(run.quantized)
    walk = layer_rounding(run.views, images, RoundingSettings(), 0)
    for _ in walk.units:
        walk.fit_next()
    assert all(torch.equal(one, other) for one, other in zip(before, snapshot(run.quantized), strict=True))


def test_the_pull_doubles_with_every_two_bits() -> None:
    settings = RoundingSettings(pull=0.3)

    assert [settings.pull_of(bits) for bits in (2, 4, 6, 8)] == pytest.approx([0.15, 0.3, 0.6, 1.2])
