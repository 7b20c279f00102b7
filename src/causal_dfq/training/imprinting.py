"""The imprinted scenes of a run: made batch by batch, then drawn from as often as needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from causal_dfq.synthesis.imprint import imprint, scenes_within, shifted
from causal_dfq.synthesis.scenes import hide_behind
from causal_dfq.synthesis.statistics import running_statistics, statistics_distance
from causal_dfq.training.budget import Recipe
from causal_dfq.training.views import NetworkViews


class Imprinting(nn.Module):
    """Imprinted scenes with the class of each. Its state dictionary holds them.

    Args:
        bounds: lowest and highest value of a pixel, each (1, C, 1, 1).
        batches, batch_size: how many images there will be.
        iterations: of each batch.
    """

    images: Tensor
    labels: Tensor

    def __init__(
        self,
        views: NetworkViews,
        image_shape: tuple[int, int, int],
        bounds: tuple[Tensor, Tensor],
        batches: int,
        batch_size: int,
        iterations: int,
    ) -> None:
        super().__init__()
        self._views = views
        self._image_shape, self._bounds = image_shape, bounds
        self._batch_size, self._iterations = batch_size, iterations
        device = bounds[0].device
        # Half the bytes: a checkpoint holds them all.
        self.register_buffer("images", torch.zeros(batches * batch_size, *image_shape, dtype=torch.float16))
        self.register_buffer("labels", torch.zeros(batches * batch_size, dtype=torch.int64))
        self.to(device)
        self._statistics = [
            (mean.to(device), variance.to(device)) for mean, variance in running_statistics(views.captured)
        ]

    def __len__(self) -> int:
        return len(self.images)

    def make_batch(self, number: int, recipe: Recipe, random: torch.Generator) -> dict[str, Tensor]:
        """Makes the images of a batch; returns the losses of its last step."""
        views, device = self._views, self._bounds[0].device
        scenes = scenes_within(self._batch_size, self._image_shape, self._bounds, random)
        labels = torch.randint(views.classes, (self._batch_size,), generator=random).to(device)
        losses: dict[str, Tensor] = {}

        def loss_of(images: Tensor) -> Tensor:
            logits, statistics, _ = views.statistics_view(images)
            losses["class_loss"] = nn.functional.cross_entropy(logits, labels)
            losses["statistics_loss"] = statistics_distance(statistics, self._statistics)
            return recipe.class_weight * losses["class_loss"] + recipe.statistics_weight * losses["statistics_loss"]

        images = imprint(scenes, self._bounds, loss_of, self._iterations, random)
        place = slice(number * self._batch_size, (number + 1) * self._batch_size)
        self.images[place] = images.to(self.images.dtype)
        self.labels[place] = labels
        return losses

    @torch.no_grad()
    def draw(self, shown: int, hidden: int, random: torch.Generator) -> Tensor:
        """So many of the images, shifted and mirrored, and so many that lie partly behind other scenes."""
        chosen = torch.randint(len(self), (shown + hidden,), generator=random).to(self.images.device)
        images = shifted(self.images[chosen].float(), random)
        if not hidden:
            return images
        scenes = scenes_within(hidden, self._image_shape, self._bounds, random)
        return torch.cat([images[:shown], hide_behind(images[shown:], scenes, random)])
