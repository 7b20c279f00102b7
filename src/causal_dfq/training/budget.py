"""How much work an effort allows, and the weights of the losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from causal_dfq.config import Effort


@dataclass(frozen=True)
class Budget:
    """How often each network is trained. `effort` chooses it; nothing else depends on `effort`.

    A warm-up step trains the generator once; without any there is none. An imprint step changes one of the
    `imprint_batches` of scenes once, in `imprint_iterations` each. A rounding step rounds the layers of one unit of the
    quantized network on all imprinted scenes and at least so many `rounding_images` of the student's mix. A
    reconstruction step fits one unit in `reconstruction_iterations`. With 0 of these there is no such step. A round, of
    the equilibrium or of the finish, trains the generator once, then the quantized network `student_steps` times.
    """

    warmup_steps: int
    equilibrium_rounds: int
    finish_rounds: int
    student_steps: int = 6
    imprint_batches: int = 0
    imprint_iterations: int = 0
    rounding_images: int = 0
    reconstruction_iterations: int = 0

    def without_generator(self) -> Budget:
        """What is left where there is no generator to train: imprinted scenes are all there is."""
        return replace(
            self,
            warmup_steps=0,
            equilibrium_rounds=0,
            imprint_batches=max(1, self.imprint_batches),
            imprint_iterations=max(1, self.imprint_iterations),
        )

    @property
    def imprint_steps(self) -> int:
        """Steps of all batches of imprinted scenes."""
        return self.imprint_batches * self.imprint_iterations

    @property
    def trains_student(self) -> bool:
        """Whether any round trains the quantized network."""
        return self.student_steps > 0 and self.equilibrium_rounds + self.finish_rounds > 0

    @property
    def steps_per_round(self) -> int:
        """Steps of one round; each trains one of the two networks once."""
        return 1 + self.student_steps

    @property
    def equilibrium_steps(self) -> int:
        """Steps of all rounds of the equilibrium."""
        return self.equilibrium_rounds * self.steps_per_round

    @property
    def finish_steps(self) -> int:
        """Steps of all rounds of the finish."""
        return self.finish_rounds * self.steps_per_round


# Where rounds train Q, rounding in closed form would cost more than the rounds that it saves [ours].
BUDGETS: dict[Effort, Budget] = {
    "fast": Budget(40, 5, 19, imprint_batches=2, imprint_iterations=40),
    "balanced": Budget(160, 40, 140, imprint_batches=6, imprint_iterations=60),
    "best": Budget(240, 50, 240, imprint_batches=32, imprint_iterations=40),
}

# For images of more than 64x64 pixels. The batches of training that a CPU can afford there are so small that they lose
# what rounding in closed form has won; and where a generator would have learned no class yet, imprinted scenes have.
# More scenes help rounding more than more iterations of each [ours].
LARGE_IMAGE_BUDGETS: dict[Effort, Budget] = {
    "fast": Budget(0, 0, 0, imprint_batches=4, imprint_iterations=40, rounding_images=32),
    "balanced": Budget(0, 0, 0, imprint_batches=24, imprint_iterations=20, rounding_images=32),
    "best": Budget(0, 0, 0, imprint_batches=24, imprint_iterations=60, rounding_images=32),
}


@dataclass(frozen=True)
class Recipe:
    """Batch sizes, loss weights and learning rates, the same for every network and effort.

    A batch of the quantized network holds `student_contents` under `styles` each, `hidden_contents` under
    `styles` each that lie partly behind scenes, and `scenes` alone; the `reconstruction_images` are of the same
    mix. A share `blended` of the contents lies between two classes. A share `imprinted` of the images with a content
    are imprinted scenes, where the budget has such, of which `pool_batch` are made at a time.

    Chosen on the development images of CIFAR-10 and CIFAR-100 [ours]. Learning rates of weights are in
    units of the layer's mean step size, those of step sizes are relative, those of zero points are in
    codes. `equilibrium_rate`: the generator's learning rate in the equilibrium, as a share of `generator_lr`.
    """

    generator_contents: int = 64
    student_contents: int = 18
    hidden_contents: int = 12
    scenes: int = 4
    reconstruction_images: int = 1024
    pool_images: int = 1024
    pool_batch: int = 128
    swing: int = 0
    low_pass: float = 0.0
    styles: int = 2
    blended: float = 0.5
    imprinted: float = 0.75
    generator_lr: float = 1e-2
    equilibrium_rate: float = 0.3
    class_weight: float = 1.0
    statistics_weight: float = 40.0
    invariance_weight: float = 0.5
    diversity_weight: float = 0.2
    variation_weight: float = 0.05
    weight_lr: float = 0.006
    bias_lr: float = 0.006
    step_size_lr: float = 4e-3
    zero_point_lr: float = 0.012
    temperature: float = 4.0
    matching_weight: float = 1.0
    feature_weight: float = 48.0
    discrepancy_weight: float = 0.1
    contrastive_weight: float = 0.02
    contrastive_tau: float = 0.1
    label_weight: float = 0.0
    label_confidence: float = 0.0
    attention_weight: float = 0.0

    def shrunk(self, share: float) -> Recipe:
        """The recipe with a share of its batches, at least a few contents each; the mix stays as near as it can."""
        return replace(
            self,
            # Twins halve a batch of the generator.
            generator_contents=max(4, 2 * round(share * self.generator_contents / 2)),
            student_contents=max(2, round(share * self.student_contents)),
            # What a recipe leaves out stays out.
            hidden_contents=min(self.hidden_contents, max(1, round(share * self.hidden_contents))),
            scenes=min(self.scenes, max(1, round(share * self.scenes))),
            reconstruction_images=max(64, round(share * self.reconstruction_images)),
            pool_images=max(64, round(share * self.pool_images)),
            pool_batch=max(16, round(share * self.pool_batch)),
        )

    @property
    def generator_images(self) -> int:
        """Images in a batch of the generator."""
        return self.styles * self.generator_contents

    @property
    def student_images(self) -> int:
        """Images in a batch of the quantized network."""
        return self.styles * (self.student_contents + self.hidden_contents) + self.scenes


_FULL_AREA = 64 * 64


CAUSAL_RECIPE = Recipe()


def recipe_for(image_shape: tuple[int, int, int], full: Recipe = CAUSAL_RECIPE) -> Recipe:
    """The recipe for images (C, H, W).

    A recipe holds the batches for images of up to 64x64 pixels. Larger ones have more places each, which show
    statistics and rounding alike: batches shrink as the sides grow, their mix stays, but that all contents of the
    quantized network are imprinted ones, where there are such [ours].
    """
    if not is_large(image_shape):
        return full
    _, height, width = image_shape
    return replace(full.shrunk(math.sqrt(_FULL_AREA / (height * width))), imprinted=1.0)


def is_large(image_shape: tuple[int, int, int]) -> bool:
    """Whether images (C, H, W) are larger than those that a recipe holds the batches for."""
    _, height, width = image_shape
    return height * width > _FULL_AREA


# Pixels that the networks see in a run after the warm-up.
COMPILED_FROM = 20_000_000


def pays_for_compilation(budget: Budget, recipe: Recipe, image_shape: tuple[int, int, int]) -> bool:
    """Whether the time that compiled arithmetic saves exceeds the time to compile it."""
    _, height, width = image_shape
    student_steps = (budget.equilibrium_rounds + budget.finish_rounds) * budget.student_steps
    images = student_steps * recipe.student_images + budget.imprint_steps * recipe.pool_batch
    return images * height * width >= COMPILED_FROM
