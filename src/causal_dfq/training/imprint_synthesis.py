"""The synthesis without a generator: imprinted scenes alone. [ours]

A network without BatchNorm keeps no statistics of its training images. A generator that its logits alone guide learns
patterns that no image has; a scene has the edges and the shading of an image before any gradient step, and keeps them
in a few. And for large images a generator would not learn the classes in the minutes that a run has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from causal_dfq.synthesis.imprint import scenes_within
from causal_dfq.synthesis.pixel_space import PixelBounds, PixelSpace
from causal_dfq.training.budget import Recipe
from causal_dfq.training.imprinting import Imprinting
from causal_dfq.training.student_loss import UNLABELLED, StudentImages
from causal_dfq.training.views import NetworkViews


class ImprintSynthesis:
    """Scenes, imprinted by the logits of P and the statistics that it has."""

    def __init__(
        self,
        views: NetworkViews,
        image_shape: tuple[int, int, int],
        pixel_bounds: PixelBounds,
        device: torch.device,
    ) -> None:
        self._views, self._image_shape = views, image_shape
        self._pixel_space = PixelSpace(pixel_bounds, image_shape[0]).to(device)

    def prepare_imprints(self, batches: int, batch_size: int, iterations: int) -> None:
        """Makes room for the images; before anything else is asked for."""
        self.imprints = Imprinting(self._views, self._image_shape, self._pixel_space, batches, batch_size, iterations)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the batch in work."""
        return self.imprints.optimizer

    @property
    def state(self) -> nn.Module:
        """What a checkpoint must hold beside the optimizer."""
        return nn.ModuleDict({"imprints": self.imprints})

    def warm_up(self, position: float, recipe: Recipe, random: torch.Generator) -> dict[str, Tensor]:
        """Nothing: there is no generator."""
        return {}

    def keep_up(self, recipe: Recipe, random: torch.Generator) -> dict[str, Tensor]:
        """Nothing: the images are what they are."""
        return {}

    def loss(self, recipe: Recipe, random: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """What a step of a batch of the recipe's size differentiates, on fresh scenes: to measure what it needs."""
        batch = Imprinting(self._views, self._image_shape, self._pixel_space, 1, recipe.pool_batch, 1)
        return batch.loss(slice(None), 0, recipe, random)

    @torch.no_grad()
    def student_images(self, recipe: Recipe, random: torch.Generator) -> StudentImages:
        """Imprinted scenes, some of them partly behind scenes, then scenes as they were drawn."""
        shown, hidden = recipe.styles * recipe.student_contents, recipe.styles * recipe.hidden_contents
        parts = [self.imprints.draw(shown, hidden, random)]
        if recipe.scenes:
            parts.append(scenes_within(recipe.scenes, self._image_shape, self._pixel_space, random))
        images = torch.cat(parts).contiguous(memory_format=torch.channels_last)
        labels = torch.full((len(images),), UNLABELLED, device=images.device)
        return StudentImages(images, labels, 0)
