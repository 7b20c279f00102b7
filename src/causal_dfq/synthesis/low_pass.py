"""A Gaussian low-pass filter: synthetic images have more high frequencies than pictures.

Source: SynQ (ICLR 2025), the low-pass filter of its first step.
"""

from __future__ import annotations

import torch
from torch import Tensor


def low_pass(images: Tensor, cutoff: float) -> Tensor:
    """Images (N, C, H, W) whose frequencies are damped by exp(-d^2 / (2 cutoff^2)), in channels_last.

    d is the distance from frequency 0, in units of the highest one of either axis: at `cutoff` 1 the highest
    frequency of an axis keeps exp(-1/2) of its size.
    """
    height, width = images.shape[2:]
    rows = 2 * torch.fft.fftfreq(height, device=images.device)
    columns = 2 * torch.fft.rfftfreq(width, device=images.device)
    squared = rows[:, None].square() + columns.square()
    damping = torch.exp(-squared / (2 * cutoff**2))
    filtered = torch.fft.irfft2(torch.fft.rfft2(images.float()) * damping, s=(height, width))
    result: Tensor = filtered.to(images.dtype).contiguous(memory_format=torch.channels_last)
    return result
