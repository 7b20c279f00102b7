"""What each part of the causal recipe adds: the same run with one of them left out, or with one more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from causal_dfq.training.equilibrium import Equilibrium
from causal_dfq.training.generator_training import GeneratorTraining

WITHOUT_DISCREPANCY = "causal-without-discrepancy"
LONG = "causal-long"


@dataclass(frozen=True)
class Longer:
    """How many times what the effort has: rounds, and images a batch; and the imprinted scenes: batches, of how many
    images, and iterations of each.
    """

    rounds: float
    batch: int
    imprint_batches: int
    pool_batch: int
    imprint_iterations: int

    @property
    def scenes(self) -> int:
        """All imprinted scenes."""
        return self.imprint_batches * self.pool_batch


# A GPU makes a batch of many images in the time of one of few, which starting its operators takes.
LONGER = Longer(rounds=1.5, batch=8, imprint_batches=8, pool_batch=512, imprint_iterations=80)


@dataclass(frozen=True)
class Ablation:
    """A change of a run before its first step.

    `alters_images`: it changes what synthesis makes, so that the images of an unchanged run are not its own.
    """

    change: Callable[[Equilibrium], None]
    alters_images: bool = False


def with_recipe(**values: Any) -> Callable[[Equilibrium], None]:
    """Other entries of the recipe."""

    def change(run: Equilibrium) -> None:
        run.use_recipe(replace(run.recipe, **values))

    return change


def leave_out_imprints(run: Equilibrium) -> None:
    """The generator's images in the place of imprinted scenes."""
    assert isinstance(run.synthesis, GeneratorTraining)
    run.budget = replace(run.budget, imprint_batches=0)
    run.synthesis.imprints = None


def leave_out_rounding(run: Equilibrium) -> None:
    """The nearest code in the place of rounding in closed form, where a budget has it."""
    run.budget = replace(run.budget, rounding_images=0)


def leave_out_scenes(run: Equilibrium) -> None:
    """As many contents, all of them fully shown."""
    recipe = run.recipe
    contents = recipe.student_contents + recipe.hidden_contents
    run.use_recipe(replace(recipe, student_contents=contents, hidden_contents=0, scenes=0))


def add_swing(run: Equilibrium) -> None:
    """Strides that begin elsewhere in every step, wherever images are made."""
    run.views.statistics = run.views.swung_statistics(run.random)


def add_reconstruction(run: Equilibrium) -> None:
    """Every unit fitted by gradient steps before the rounds."""
    run.budget = replace(run.budget, reconstruction_iterations=100)


def lengthen(run: Equilibrium) -> None:
    """A schedule for a GPU: more rounds, larger batches of the quantized network, and larger ones of scenes."""
    budget, recipe = run.budget, run.recipe
    run.budget = replace(
        budget,
        equilibrium_rounds=int(LONGER.rounds * budget.equilibrium_rounds),
        finish_rounds=int(LONGER.rounds * budget.finish_rounds),
        imprint_batches=LONGER.imprint_batches,
        imprint_iterations=LONGER.imprint_iterations,
    )
    run.use_recipe(
        replace(
            recipe,
            pool_batch=LONGER.pool_batch,
            student_contents=LONGER.batch * recipe.student_contents,
            hidden_contents=LONGER.batch * recipe.hidden_contents,
            scenes=LONGER.batch * recipe.scenes,
        )
    )


ABLATIONS: Mapping[str, Ablation] = {
    # The same contents and styles without the discrepancy and the contrastive loss.
    WITHOUT_DISCREPANCY: Ablation(with_recipe(discrepancy_weight=0.0, contrastive_weight=0.0)),
    "causal-without-imprints": Ablation(leave_out_imprints, alters_images=True),
    "causal-without-rounding": Ablation(leave_out_rounding),
    "causal-without-scenes": Ablation(leave_out_scenes),
    "causal-without-blends": Ablation(with_recipe(blended=0.0)),
    "causal-without-features": Ablation(with_recipe(feature_weight=0.0)),
    "causal-without-diversity": Ablation(with_recipe(diversity_weight=0.0, variation_weight=0.0), alters_images=True),
    "causal-with-swing": Ablation(add_swing, alters_images=True),
    "causal-with-low-pass": Ablation(with_recipe(low_pass=0.5)),
    "causal-with-reconstruction": Ablation(add_reconstruction),
    LONG: Ablation(lengthen, alters_images=True),
}
