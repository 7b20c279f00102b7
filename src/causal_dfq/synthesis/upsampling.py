"""A 3x3 convolution of a map upsampled by two, computed at the small size: the same values for half the work.

Nearest-neighbour upsampling repeats each value four times, so a 3x3 kernel sees only 2x2 different ones: which
of them, depends on the parity of row and column. Four 2x2 kernels at the small size therefore give the four
parities of the large map. [ours], after the sub-pixel view of Shi et al. (2016).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def convolve_parities(features: Tensor, weight: Tensor) -> Tensor:
    """conv2d(interpolate(features, scale_factor=2), weight, padding=1), its four parities beside each other.

    (N, I, H, W), (O, I, 3, 3) -> (N, 4 O, H + 1, W + 1), which `interleave` makes one map of. Parities are linear
    in both arguments: those of a sum are the sum of the parities.
    """
    by_row = torch.stack(_merged(weight, 2))
    kernels = torch.stack(_merged(by_row, 4), 1).flatten(0, 2)
    return functional.conv2d(features, kernels.contiguous(memory_format=torch.channels_last), padding=1)


def interleave(parities: Tensor) -> Tensor:
    """(N, 4 O, H + 1, W + 1) -> (N, O, 2 H, 2 W) in channels_last."""
    result: Tensor = _Interleave.apply(parities)
    return result


def _merged(kernel: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """Three taps -> the two of an even and the two of an odd position: taps that meet the same value add up."""
    first, second, third = kernel.unbind(dimension)
    even, odd = (first, second + third), (first + second, third)
    return torch.stack(even, dimension), torch.stack(odd, dimension)


class _Interleave(torch.autograd.Function):
    """(N, 4 O, H + 1, W + 1) -> (N, O, 2 H, 2 W): parity (p, q) is read from row p and column q on."""

    @staticmethod
    def forward(ctx: Any, parities: Tensor) -> Tensor:
        ctx.shape = parities.shape
        source = _by_parity(parities.contiguous(memory_format=torch.channels_last))
        count, rows, columns, _, _, channels = source.shape
        height, width = rows - 1, columns - 1
        large = source.new_empty(count, height, 2, width, 2, channels)
        for p in (0, 1):
            for q in (0, 1):
                large[:, :, p, :, q] = source[:, p : p + height, q : q + width, p, q]
        return large.view(count, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        count, channels, rows, columns = ctx.shape
        height, width = rows - 1, columns - 1
        gradient = gradients[0].contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        large = gradient.view(count, height, 2, width, 2, channels // 4)
        result = gradient.new_zeros(count, rows, columns, channels).permute(0, 3, 1, 2)
        target = _by_parity(result)
        for p in (0, 1):
            for q in (0, 1):
                target[:, p : p + height, q : q + width, p, q] = large[:, :, p, :, q]
        return result


def _by_parity(parities: Tensor) -> Tensor:
    """(N, 4 O, H, W) in channels_last -> its view (N, H, W, 2, 2, O)."""
    by_parity: Tensor = parities.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))
    return by_parity
