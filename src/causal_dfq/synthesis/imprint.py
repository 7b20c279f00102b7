"""Contents imprinted on scenes: a procedural scene, changed until the pre-trained network sees a class in it.

A scene has the edges, the shading and the arrangement of natural images, but no class and not the network's statistics;
an image optimized from noise has both of these and nothing natural. An imprint is a change of the scene in the basis
of its Fourier coefficients, each in units of the amplitude that natural images have at its frequency, so that a
gradient step changes large shapes before fine grain.

Source: statistics and class of an image optimized by gradient, ZeroQ (Cai et al., CVPR 2020) and DeepInversion (Yin et
al., CVPR 2020); the basis and the random shifts, Olah et al., "Feature visualization" (Distill 2017); that scenes are
what is changed [ours].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from causal_dfq.synthesis.pixel_space import PixelSpace
from causal_dfq.synthesis.scenes import draw_scenes, generator_on

RATE = 0.05
MOMENTA = (0.5, 0.99)
# Of the sides: how far an image is shifted before the network looks at it.
_SHIFT = 1 / 16


class SpectralChange(nn.Module):
    """What is added to images: zero at first.

    Args:
        shape: (N, C, H, W) of the images.
    """

    amplitude: Tensor

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        count, channels, height, width = shape
        self.coefficients = nn.Parameter(torch.zeros(count, channels, height, width // 2 + 1, 2))
        self.register_buffer("amplitude", natural_amplitude(height, width), persistent=False)
        self.size = (height, width)

    def forward(self) -> Tensor:
        """(N, C, H, W); coefficients of unit variance give it one of about 0.8."""
        spectrum = torch.view_as_complex(self.coefficients) * self.amplitude
        change: Tensor = torch.fft.irfft2(spectrum, s=self.size, norm="ortho")
        return change


def natural_amplitude(height: int, width: int) -> Tensor:
    """(H, W // 2 + 1): 1 / f of the frequencies of a real image, their root mean square 1 / sqrt(2)."""
    vertical, horizontal = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    falling = 1 / (vertical.square() + horizontal.square()).sqrt().clamp_min(1 / max(height, width))
    amplitude: Tensor = falling / (2 * falling.square().mean()).sqrt()
    return amplitude


class Imprint(nn.Module):
    """A batch of scenes and what is changed in them; called, it gives the images (N, C, H, W).

    Args:
        shape: (N, C, H, W) of the scenes.
        pixel_space: what the network reads as pixels.
    """

    scenes: Tensor

    def __init__(self, shape: tuple[int, int, int, int], pixel_space: PixelSpace) -> None:
        super().__init__()
        self.change = SpectralChange(shape)
        self.register_buffer("scenes", torch.zeros(shape))
        self.pixel_space = pixel_space

    @torch.no_grad()
    def begin(self, scenes: Tensor) -> None:
        """Other scenes, in which nothing is changed yet."""
        self.scenes.copy_(scenes)
        self.change.coefficients.zero_()

    def forward(self) -> Tensor:
        """The scenes as they are changed now, within the bounds."""
        return self.pixel_space.changed(self.scenes, self.change())


def as_looked_at(images: Tensor, iteration: int, random: torch.Generator) -> Tensor:
    """What the network is shown in a step: all shifted by a random distance, every other time mirrored."""
    height, width = images.shape[2:]
    down, right = (_shift(side, random) for side in (height, width))
    shown = images.roll((down, right), (2, 3))
    return shown if iteration % 2 == 0 else shown.flip(3)


def scenes_within(
    count: int, image_shape: tuple[int, int, int], pixel_space: PixelSpace, random: torch.Generator
) -> Tensor:
    """Scenes (count, C, H, W) as pixels of a space, drawn on its device."""
    there = generator_on(pixel_space.lowest.device, random)
    scenes: Tensor = pixel_space(draw_scenes(count, image_shape, there))
    return scenes


def shifted(images: Tensor, random: torch.Generator) -> Tensor:
    """Images (N, C, H, W), all shifted alike, the border mirrored into the gap, and some of them mirrored."""
    height, width = images.shape[2:]
    down, right = (_shift(side, random) for side in (height, width))
    margins = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
    padded = nn.functional.pad(images, margins, mode="reflect")
    top, left = max(-down, 0), max(-right, 0)
    moved = padded[:, :, top : top + height, left : left + width]
    is_mirrored = (torch.rand(len(images), 1, 1, 1, generator=random) < 0.5).to(images.device)
    return torch.where(is_mirrored, moved.flip(3), moved)


def _shift(side: int, random: torch.Generator) -> int:
    most = max(1, round(_SHIFT * side)) if side > 1 else 0
    return int(torch.randint(-most, most + 1, (1,), generator=random))
