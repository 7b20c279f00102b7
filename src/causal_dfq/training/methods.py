"""The data-free methods as choices of the same components: this project's, and those of the field to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from causal_dfq.config import Effort, Method
from causal_dfq.training.budget import BUDGETS, CAUSAL_RECIPE, LARGE_IMAGE_BUDGETS, Budget, Recipe, is_large
from causal_dfq.training.pool_training import Synthesis


@dataclass(frozen=True)
class Components:
    """What a method is made of: where its images come from, the weights of its losses, and its steps by effort.

    `large_image_budgets` are those for images of more than 64x64 pixels, where they differ.
    """

    synthesis: Synthesis
    recipe: Recipe
    budgets: Mapping[Effort, Budget]
    large_image_budgets: Mapping[Effort, Budget] | None = None

    def budgets_for(self, image_shape: tuple[int, int, int]) -> Mapping[Effort, Budget]:
        """The budgets for images (C, H, W)."""
        if self.large_image_budgets is not None and is_large(image_shape):
            return self.large_image_budgets
        return self.budgets


# No blends, no scenes and nothing asked of noise: images of single classes alone. Each content comes under two styles,
# which cost a student step nothing: its batch is as large as the causal one's.
_PLAIN_GENERATOR = replace(
    CAUSAL_RECIPE,
    blended=0.0,
    hidden_contents=0,
    scenes=0,
    student_contents=32,
    invariance_weight=0.0,
    diversity_weight=0.0,
    variation_weight=0.0,
    discrepancy_weight=0.0,
    contrastive_weight=0.0,
    feature_weight=0.0,
)
_GDFQ = replace(_PLAIN_GENERATOR, temperature=20.0, label_weight=1.0)
_POOL = replace(_PLAIN_GENERATOR, class_weight=0.0)

# Efforts fast and balanced give a method of the field about as much time as the causal one, by the cost of a step on a
# CIFAR ResNet, and best less: where those have no imprints and no rounding in closed form, they have more
# rounds or steps.
_PLAIN_BUDGETS: Mapping[Effort, Budget] = {
    "fast": Budget(60, 8, 20),
    "balanced": Budget(160, 50, 175),
    "best": Budget(240, 65, 300),
}

METHODS: Mapping[Method, Components] = {
    "causal": Components("generator", CAUSAL_RECIPE, BUDGETS, LARGE_IMAGE_BUDGETS),
    # Cai et al., CVPR 2020: pixels with P's statistics, then calibration alone.
    "zeroq": Components(
        "pixels",
        replace(_POOL, generator_lr=0.1, pool_images=512),
        {
            "fast": Budget(warmup_steps=350, equilibrium_rounds=0, finish_rounds=0),
            "balanced": Budget(warmup_steps=2200, equilibrium_rounds=0, finish_rounds=0),
            "best": Budget(warmup_steps=3600, equilibrium_rounds=0, finish_rounds=0),
        },
    ),
    # Xu et al., ECCV 2020: a conditional generator, distillation with the classes as labels.
    "gdfq": Components("generator", _GDFQ, _PLAIN_BUDGETS),
    # Jeon et al., CVPR 2023: latents and their generators, swing convolution, reconstruction block by block.
    "genie": Components(
        "latents",
        replace(_POOL, swing=1),
        {
            "fast": Budget(warmup_steps=100, equilibrium_rounds=0, finish_rounds=0, reconstruction_iterations=60),
            "balanced": Budget(warmup_steps=500, equilibrium_rounds=0, finish_rounds=0, reconstruction_iterations=400),
            "best": Budget(warmup_steps=640, equilibrium_rounds=0, finish_rounds=0, reconstruction_iterations=760),
        },
    ),
    # ICLR 2025: GDFQ's training on low-pass filtered images, with aligned class activation maps, and labels where P is
    # sure of them.
    "synq": Components(
        "generator", replace(_GDFQ, low_pass=0.5, attention_weight=50.0, label_confidence=0.5), _PLAIN_BUDGETS
    ),
}
