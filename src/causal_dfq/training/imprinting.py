"""The imprinted scenes of a run: made batch by batch, then drawn from as often as needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from causal_dfq.synthesis.imprint import MOMENTA, RATE, Imprint, as_looked_at, scenes_within, shifted
from causal_dfq.synthesis.pixel_space import PixelSpace
from causal_dfq.synthesis.scenes import hide_behind
from causal_dfq.synthesis.statistics import running_statistics, statistics_distance
from causal_dfq.training.budget import Recipe
from causal_dfq.training.views import NetworkViews

# Images are kept in half the bytes of float32: a checkpoint holds them all.
_KEPT = torch.float16
BYTES_PER_VALUE = _KEPT.itemsize


class Imprinting(nn.Module):
    """Imprinted scenes with the class of each. Its state dictionary holds them, and the batch in work.

    Args:
        pixel_space: what the network reads as pixels.
        batches, batch_size: how many images there will be.
        iterations: gradient steps of each batch.
    """

    images: Tensor
    labels: Tensor

    def __init__(
        self,
        views: NetworkViews,
        image_shape: tuple[int, int, int],
        pixel_space: PixelSpace,
        batches: int,
        batch_size: int,
        iterations: int,
    ) -> None:
        super().__init__()
        self._views, self._image_shape = views, image_shape
        self._batch_size, self._iterations = batch_size, iterations
        device = pixel_space.lowest.device
        self.register_buffer("images", torch.zeros(batches * batch_size, *image_shape, dtype=_KEPT))
        self.register_buffer("labels", torch.zeros(batches * batch_size, dtype=torch.int64))
        self.batch = Imprint((batch_size, *image_shape), pixel_space)
        self.to(device)
        self.optimizer = torch.optim.Adam(self.batch.parameters(), RATE, betas=MOMENTA, fused=True)
        self._statistics = [
            (mean.to(device), variance.to(device)) for mean, variance in running_statistics(views.captured)
        ]

    def __len__(self) -> int:
        return len(self.images)

    def step(self, step: int, recipe: Recipe, random: torch.Generator) -> dict[str, Tensor]:
        """A gradient step of the batch in work, counted from 0 over all batches; returns its losses, scalars."""
        number, iteration = divmod(step, self._iterations)
        place = slice(number * self._batch_size, (number + 1) * self._batch_size)
        if iteration == 0:
            self._begin(place, random)
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * (1 - iteration / self._iterations)
        loss, losses = self.loss(place, iteration, recipe, random)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if iteration == self._iterations - 1:
            with torch.no_grad():
                self.images[place] = self.batch().to(self.images.dtype)
        return losses

    def loss(
        self, place: slice, iteration: int, recipe: Recipe, random: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the batch in work, whose classes are those at a place, and its parts, all scalars."""
        shown = as_looked_at(self.batch(), iteration, random)
        logits, statistics, _ = self._views.statistics_view(shown)
        losses = {"class_loss": nn.functional.cross_entropy(logits, self.labels[place])}
        loss = recipe.class_weight * losses["class_loss"]
        if self._statistics:
            losses["statistics_loss"] = statistics_distance(statistics, self._statistics)
            loss = loss + recipe.statistics_weight * losses["statistics_loss"]
        return loss, losses

    def _begin(self, place: slice, random: torch.Generator) -> None:
        self.batch.begin(scenes_within(self._batch_size, self._image_shape, self.batch.pixel_space, random))
        labels = torch.randint(self._views.classes, (self._batch_size,), generator=random)
        self.labels[place] = labels.to(self.labels.device)
        self.optimizer.state.clear()

    @torch.no_grad()
    def draw(self, shown: int, hidden: int, random: torch.Generator) -> Tensor:
        """(shown + hidden, C, H, W): images at random, shifted and mirrored; the hidden ones partly behind scenes."""
        chosen = torch.randint(len(self), (shown + hidden,), generator=random).to(self.images.device)
        images = shifted(self.images[chosen].float(), random)
        if not hidden:
            return images
        scenes = scenes_within(hidden, self._image_shape, self.batch.pixel_space, random)
        return torch.cat([images[:shown], hide_behind(images[shown:], scenes, random)])
