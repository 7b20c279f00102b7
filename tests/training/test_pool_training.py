"""Images optimized once: that they come to have the statistics, fill the pool, and can be taken up again."""

import copy
from dataclasses import replace

import pytest
import torch

from causal_dfq.config import make_options
from causal_dfq.pipeline import prepare, resolve_device
from causal_dfq.training.budget import Budget, Recipe
from causal_dfq.training.equilibrium import Equilibrium
from causal_dfq.training.methods import METHODS
from causal_dfq.training.pool_training import PoolKind, PoolTraining
from causal_dfq.training.views import NetworkViews
from tests.networks import Residual, trained

BOUNDS = ((-2.0,) * 3, (2.0,) * 3)


def started(kind: PoolKind, steps: int = 24, swing: int = 0) -> Equilibrium:
    options = make_options(bits="w4a4", input_shape=(3, 8, 8))
    prepared = prepare(trained(Residual()), options)
    views = NetworkViews(prepared.captured, prepared.folded, prepared.quantized)
    rate = 0.1 if kind == "pixels" else 0.01
    recipe = replace(Recipe(), pool_images=32, pool_batch=16, generator_lr=rate, class_weight=0.0, swing=swing)
    return Equilibrium(views, (3, 8, 8), BOUNDS, Budget(steps, 0, 0), recipe, 0, resolve_device("cpu"), kind)


@pytest.mark.parametrize("kind", ["pixels", "latents"])
@pytest.mark.parametrize("swing", [0, 1])
def test_every_batch_comes_nearer_to_the_statistics_and_ends_in_the_pool(kind: PoolKind, swing: int) -> None:
    run = started(kind, 60, swing)
    losses = [run.run_step(step)["statistics_loss"] for step in range(60)]
    assert isinstance(run.synthesis, PoolTraining)
    for first in (0, 30):
        assert losses[first + 29] < 0.7 * losses[first]
    pool = run.synthesis.state
    assert (pool.images.flatten(1).std(1) > 0.05).all()
    assert pool.images.min() >= -2
    assert pool.images.max() <= 2
    assert len({tuple(image.flatten().tolist()) for image in pool.images}) == 32
    # The last step calibrates.
    assert run.total_steps == 61
    run.run_step(60)
    assert all(p.item() != 0 for name, p in run.quantized.named_parameters() if "activation" in name and "log" in name)


def test_the_student_draws_from_the_pool() -> None:
    run = started("pixels")
    for step in range(run.total_steps):
        run.run_step(step)
    drawn = run.student_images(torch.Generator().manual_seed(0))
    rows = {tuple(image.flatten().tolist()) for image in run.synthesis.state.images}
    assert all(tuple(image.flatten().tolist()) in rows for image in drawn.images)
    assert len(drawn.images) == run.recipe.student_images
    assert drawn.intervened == 0


def test_the_same_seed_gives_the_same_pool() -> None:
    pools = []
    for _ in range(2):
        run = started("latents", 8)
        for step in range(run.total_steps):
            run.run_step(step)
        pools.append(copy.deepcopy(run.synthesis.state.images))
    assert torch.equal(*pools)


def test_every_method_of_the_field_is_a_choice_of_components() -> None:
    assert {name: components.synthesis for name, components in METHODS.items()} == {
        "causal": "generator",
        "zeroq": "pixels",
        "gdfq": "generator",
        "genie": "latents",
        "synq": "generator",
    }
    for name in ("gdfq", "synq"):
        recipe = METHODS[name].recipe
        assert recipe.discrepancy_weight == recipe.contrastive_weight == recipe.feature_weight == 0
        assert recipe.label_weight > 0
