"""Where the pixels of natural images lie among the values that a network reads.

Scenes, imprints and the generator are made for values of mean about 0 and deviation about 1, as the usual normalization
gives them. Other networks read pixels from -1 to 1, from 0 to 1 or from 0 to 255: what is synthesized is carried over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from causal_dfq.fusion import Formula

# Normalized values of a black and of a white pixel, by channel; None where the normalization is unknown.
PixelBounds = tuple[tuple[float, ...], tuple[float, ...]] | None

# Of pixels between 0 and 1, about as ImageNet and CIFAR have them.
_MEAN, _DEVIATION = 0.45, 0.25
# Divided by the deviation that its data set has, a pixel's range from black to white is about so long.
_SHORTEST_RANGE, _LONGEST_RANGE = 2.5, 10.0


class PixelSpace(nn.Module):
    """Carries values of mean 0 and deviation 1 over to pixels: moved, stretched, held between black and white. [ours]

    Nothing is moved where the normalization is unknown, nor where its mean and deviation are a data set's own: they
    give its images mean 0 and deviation 1, whatever these show.

    Args:
        bounds: normalized values of black and of white by channel, where known.
        channels: C.
    """

    lowest: Tensor
    highest: Tensor
    offset: Tensor
    stretch: Tensor

    def __init__(self, bounds: PixelBounds, channels: int) -> None:
        super().__init__()
        low, high = bounds or ((-torch.inf,) * channels, (torch.inf,) * channels)
        lowest, highest = (torch.tensor(values).view(1, -1, 1, 1) for values in (low, high))
        offset, stretch = torch.zeros_like(lowest), torch.ones_like(lowest)
        if bounds is not None:
            length = highest - lowest
            if not ((length >= _SHORTEST_RANGE) & (length <= _LONGEST_RANGE)).all():
                offset, stretch = torch.lerp(lowest, highest, _MEAN), _DEVIATION * length
        for name, values in (("lowest", lowest), ("highest", highest), ("offset", offset), ("stretch", stretch)):
            self.register_buffer(name, values, persistent=False)

    def changed(self, pixels: Tensor, values: Tensor) -> Tensor:
        """Constant pixels (N, C, H, W), to which values of deviation 1 are added; held between black and white."""
        result: Tensor = _Changed.apply(pixels, values, self.stretch, self.lowest, self.highest)
        return result

    def hold(self, pixels: Tensor) -> Tensor:
        """Pixels (N, C, H, W), none darker than black and none brighter than white."""
        return torch.clamp(pixels, self.lowest, self.highest)

    def forward(self, values: Tensor) -> Tensor:
        """Values (N, C, H, W) of mean about 0 and deviation about 1 -> pixels."""
        return self.hold(self.offset + self.stretch * values)


@Formula
def _changed(pixels: Tensor, values: Tensor, stretch: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    return torch.clamp(pixels + stretch * values, lowest, highest)


@Formula
def _gradient_of_values(
    gradient: Tensor, pixels: Tensor, values: Tensor, stretch: Tensor, lowest: Tensor, highest: Tensor
) -> Tensor:
    """None where the sum lies beyond black or white; a scene's black pixels lie on the bound, and have one."""
    total = pixels + stretch * values
    return torch.where((total >= lowest) & (total <= highest), gradient * stretch, 0.0)


class _Changed(torch.autograd.Function):
    """One pass over memory each way: for a small network these take as long as its layers."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, values: Tensor, *space: Tensor) -> Tensor:
        ctx.save_for_backward(pixels, values, *space)
        result: Tensor = _changed(pixels, values, *space)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, _gradient_of_values(gradients[0], *ctx.saved_tensors), None, None, None
