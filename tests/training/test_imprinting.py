"""A run's imprinted scenes: P sees their classes, they have its statistics, and they join the student's images."""

from dataclasses import replace

import pytest
import torch

from causal_dfq.training.budget import Budget, Recipe
from causal_dfq.training.equilibrium import CALIBRATION, IMPRINT, Equilibrium
from causal_dfq.training.generator_training import GeneratorTraining
from causal_dfq.training.imprinting import Imprinting
from tests.training.test_equilibrium import started

SMALL = Budget(1, 1, 1, student_steps=1, imprint_batches=2, imprint_iterations=40)
RECIPE = replace(Recipe(), pool_batch=16)


def imprints_of(run: Equilibrium) -> Imprinting:
    assert isinstance(run.synthesis, GeneratorTraining)
    assert run.synthesis.imprints is not None
    return run.synthesis.imprints


@pytest.mark.parametrize(("weights", "loss"), [((4.0, 0.0), "statistics_loss"), ((0.0, 1.0), "class_loss")])
def test_every_batch_comes_nearer_to_what_is_asked(weights: tuple[float, float], loss: str) -> None:
    recipe = replace(RECIPE, statistics_weight=weights[0], class_weight=weights[1])
    losses = {}
    for iterations in (1, 80):
        run = started(replace(SMALL, imprint_iterations=iterations), recipe=recipe)
        run.run_step(0)
        found = [run.run_step(1 + step)[loss] for step in range(2 * iterations)]
        losses[iterations] = found[iterations - 1 :: iterations]
        assert run.phase(2 * iterations).name == IMPRINT
        assert run.phase(1 + 2 * iterations).name == CALIBRATION
    assert all(last < 0.95 * first for first, last in zip(losses[1], losses[80], strict=True))
    imprints = imprints_of(run)
    assert len(imprints) == 32
    with torch.no_grad():
        logits = run.views.pretrained_logits(imprints.images.float())
    # What was made last is what is kept, in half precision and not shifted.
    if loss == "class_loss":
        kept = torch.nn.functional.cross_entropy(logits[16:], imprints.labels[16:])
        assert abs(float(kept) - losses[80][1]) < 0.2 * losses[80][1]


def test_the_students_images_hold_their_share_after_those_under_interventions() -> None:
    run = started(SMALL, recipe=RECIPE)
    imprints = imprints_of(run)
    imprints.images.fill_(7.0)
    drawn = run.student_images(torch.Generator().manual_seed(0))
    assert len(drawn.images) == RECIPE.student_images
    is_imprinted = (drawn.images == 7.0).flatten(1).float().mean(1)
    shown = RECIPE.styles * round(RECIPE.imprinted * RECIPE.student_contents)
    hidden = RECIPE.styles * round(RECIPE.imprinted * RECIPE.hidden_contents)
    assert int((is_imprinted == 1).sum()) == shown
    assert drawn.intervened == RECIPE.styles * RECIPE.student_contents - shown
    assert bool((is_imprinted[: -(shown + hidden)] == 0).all())


def test_a_budget_without_batches_leaves_them_out() -> None:
    run = started(replace(SMALL, imprint_batches=0), recipe=RECIPE)
    assert isinstance(run.synthesis, GeneratorTraining)
    assert run.synthesis.imprints is None
    assert IMPRINT not in {run.phase(step).name for step in range(run.total_steps)}
    drawn = run.student_images(torch.Generator().manual_seed(0))
    assert drawn.intervened == RECIPE.styles * RECIPE.student_contents
