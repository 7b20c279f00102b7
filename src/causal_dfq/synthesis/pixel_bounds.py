"""Between which values the pixels of a picture lie."""

from __future__ import annotations

import torch
from torch import Tensor

# Normalized values of a black and of a white pixel, by channel; None where the normalization is unknown.
PixelBounds = tuple[tuple[float, ...], tuple[float, ...]] | None


def bound_tensors(bounds: PixelBounds, channels: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of a pixel, each (1, C, 1, 1); infinite where they are unknown."""
    low, high = bounds or ((-torch.inf,) * channels, (torch.inf,) * channels)
    return tuple(torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (low, high))  # type: ignore[return-value]
