"""Images optimized once, batch after batch, and drawn from afterwards: the synthesis of ZeroQ and of GENIE."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from causal_dfq.causal.graph import Content
from causal_dfq.synthesis.generator import STYLE_SIZE, VARIATION_SIZE, ContentStyleGenerator, initialize
from causal_dfq.synthesis.pixel_space import PixelBounds, PixelSpace
from causal_dfq.synthesis.statistics import running_statistics, statistics_distance
from causal_dfq.training.budget import Recipe
from causal_dfq.training.student_loss import StudentImages
from causal_dfq.training.views import NetworkViews

PoolKind = Literal["pixels", "latents"]
Synthesis = Literal["generator", "imprints"] | PoolKind
_LATENT_RATE = 10.0


class PixelBatch(nn.Module):
    """Images whose pixels are the parameters. Source: ZeroQ (Cai et al., CVPR 2020)."""

    def __init__(self, count: int, image_shape: tuple[int, int, int], pixel_bounds: PixelBounds) -> None:
        super().__init__()
        self.pixels = nn.Parameter(torch.zeros(count, *image_shape))
        self.pixel_space = PixelSpace(pixel_bounds, image_shape[0])

    @torch.no_grad()
    def restart(self, random: torch.Generator) -> None:
        """Draws the pixels anew."""
        self.pixels.copy_(torch.randn(self.pixels.shape, generator=random))

    def groups(self) -> list[dict[str, object]]:
        """Adam's groups, with their shares of the learning rate."""
        return [{"params": [self.pixels], "share": 1.0}]

    def forward(self, labels: Tensor) -> Tensor:
        """Images (N, C, H, W); the classes (N,) are not read."""
        images: Tensor = self.pixel_space(self.pixels)
        return images


class LatentBatch(nn.Module):
    """Images of a generator of their own, whose inputs are learned with it. Source: GENIE (Jeon et al., CVPR 2023)."""

    def __init__(self, count: int, classes: int, image_shape: tuple[int, int, int], pixel_bounds: PixelBounds) -> None:
        super().__init__()
        self.generator = ContentStyleGenerator(classes, image_shape, pixel_bounds)
        self.variation = nn.Parameter(torch.zeros(count, VARIATION_SIZE))
        self.style = nn.Parameter(torch.zeros(count, STYLE_SIZE))

    @torch.no_grad()
    def restart(self, random: torch.Generator) -> None:
        """Draws generator and latents anew."""
        initialize(self.generator, random)
        self.generator.image_norm.weight.fill_(1.0)
        for latent in (self.variation, self.style):
            latent.copy_(torch.randn(latent.shape, generator=random))

    def groups(self) -> list[dict[str, object]]:
        """Adam's groups, with their shares of the learning rate."""
        return [
            {"params": list(self.generator.parameters()), "share": 1.0},
            {"params": [self.variation, self.style], "share": _LATENT_RATE},
        ]

    def forward(self, labels: Tensor) -> Tensor:
        """Images (N, C, H, W) of classes (N,)."""
        images: Tensor = self.generator(Content.of_classes(labels, self.variation), self.style)
        return images


class Pool(nn.Module):
    """The state of the synthesis: finished images, their classes, the batch in work, and the steps done."""

    images: Tensor
    labels: Tensor
    steps: Tensor

    def __init__(self, batch: PixelBatch | LatentBatch, count: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.batch = batch
        self.register_buffer("images", torch.zeros(count, *image_shape))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


class PoolTraining:
    """Fills a pool of images, each batch optimized to have P's BatchNorm statistics.

    It has no imprinted scenes.

    Args:
        kind: "pixels" or "latents".
        steps: of the whole synthesis; every batch gets the same share.
        random: of the swings.
    """

    imprints: None = None

    def __init__(
        self,
        views: NetworkViews,
        image_shape: tuple[int, int, int],
        pixel_bounds: PixelBounds,
        kind: PoolKind,
        recipe: Recipe,
        steps: int,
        random: torch.Generator,
        device: torch.device,
    ) -> None:
        self.views, self.device = views, device
        self.batch_size = recipe.pool_batch
        self.batches = max(1, min(recipe.pool_images // self.batch_size, steps))
        self.steps_of_batch = steps // self.batches
        with torch.random.fork_rng(devices=[]):
            batch: PixelBatch | LatentBatch = (
                PixelBatch(self.batch_size, image_shape, pixel_bounds)
                if kind == "pixels"
                else LatentBatch(self.batch_size, views.classes, image_shape, pixel_bounds)
            )
        self.state = Pool(batch, self.batches * self.batch_size, image_shape)
        self.state.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(batch.groups(), betas=(0.9, 0.99), fused=True)
        self._view = views.swung_statistics(random) if recipe.swing else views.statistics
        self.statistics = [
            (mean.to(device), variance.to(device)) for mean, variance in running_statistics(views.captured)
        ]

    def warm_up(self, position: float, recipe: Recipe, random: torch.Generator) -> dict[str, Tensor]:
        """One step of the batch in work, at the rate of its own schedule; a finished batch goes into the pool."""
        pool = self.state
        number, step = divmod(int(pool.steps), self.steps_of_batch)
        pool.steps += 1
        if number >= self.batches:
            # What the division left over.
            return {}
        place = slice(number * self.batch_size, (number + 1) * self.batch_size)
        if step == 0:
            pool.batch.restart(random)
            pool.labels[place] = torch.randint(self.views.classes, (self.batch_size,), generator=random).to(self.device)
            self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * recipe.generator_lr * _cosine(step / self.steps_of_batch)
        with self.views.autocast():
            images = pool.batch(pool.labels[place])
        logits, statistics, _ = self.views.statistics_through(self._view, images)
        statistics_loss = statistics_distance(statistics, self.statistics)
        class_loss = nn.functional.cross_entropy(logits, pool.labels[place])
        loss = recipe.statistics_weight * statistics_loss + recipe.class_weight * class_loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if step == self.steps_of_batch - 1:
            with torch.no_grad(), self.views.autocast():
                pool.images[place] = pool.batch(pool.labels[place]).float()
        return {"generator_loss": loss, "statistics_loss": statistics_loss, "class_loss": class_loss}

    def keep_up(self, recipe: Recipe, random: torch.Generator) -> dict[str, Tensor]:
        """Nothing: the images are what they are."""
        return {}

    @torch.no_grad()
    def student_images(self, recipe: Recipe, random: torch.Generator) -> StudentImages:
        """Images of the pool at random."""
        pool = self.state
        chosen = torch.randint(len(pool.images), (recipe.student_images,), generator=random).to(self.device)
        images = pool.images[chosen].contiguous(memory_format=torch.channels_last)
        return StudentImages(images, pool.labels[chosen], 0)


def _cosine(position: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * position))
