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

from collections.abc import Callable

import torch
from torch import Tensor, nn

from causal_dfq.synthesis.scenes import draw_scenes

RATE = 0.05
_MOMENTA = (0.5, 0.99)
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


def imprint(
    scenes: Tensor,
    bounds: tuple[Tensor, Tensor],
    loss_of: Callable[[Tensor], Tensor],
    steps: int,
    random: torch.Generator,
) -> Tensor:
    """Scenes (N, C, H, W) changed by gradient steps on a loss of the images, within the bounds of their pixels.

    The loss sees them shifted by a random distance and, every other time, mirrored.
    """
    count, channels, height, width = scenes.shape
    change = SpectralChange((count, channels, height, width)).to(scenes.device)
    optimizer = torch.optim.Adam(change.parameters(), RATE, betas=_MOMENTA)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        images = torch.clamp(scenes + change(), *bounds)
        down, right = (_shift(side, random) for side in (height, width))
        seen = images.roll((down, right), (2, 3))
        loss = loss_of(seen if step % 2 == 0 else seen.flip(3))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return torch.clamp(scenes + change(), *bounds)


def scenes_within(
    count: int, image_shape: tuple[int, int, int], bounds: tuple[Tensor, Tensor], random: torch.Generator
) -> Tensor:
    """Scenes (count, C, H, W) on the device of the bounds, their pixels between them."""
    return torch.clamp(draw_scenes(count, image_shape, random).to(bounds[0].device), *bounds)


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
    most = max(1, round(_SHIFT * side))
    return int(torch.randint(-most, most + 1, (1,), generator=random))
