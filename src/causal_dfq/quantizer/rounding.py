"""Learned rounding: each weight goes down or up, whichever serves the layer's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from causal_dfq.quantizer.affine import integer_range
from causal_dfq.quantizer.modules import WeightQuantizer

_LOW, _HIGH = -0.1, 1.1


class LearnedRounding(nn.Module):
    """A weight on its grid, between its two nearest codes: floor(w / scale) + h, h in [0, 1] learned.

    h = clamp(1.2 sigmoid(v) - 0.1, 0, 1) starts at the weight's own fraction, so that nothing is rounded yet.
    The step size is the quantizer's own, and is learned with it while the floors stay.

    Source: Nagel et al., "Up or down? Adaptive rounding" (ICML 2020), eq. 23 to 25; a step size learned beside
    fixed floors after GENIE (Jeon et al., CVPR 2023).
    """

    floor: Tensor

    def __init__(self, weight: Tensor, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        exact = (weight / quantizer.scale).detach()
        self.register_buffer("floor", exact.floor())
        share = (exact - self.floor - _LOW) / (_HIGH - _LOW)
        self.logit = nn.Parameter(torch.logit(share))

    @property
    def share(self) -> Tensor:
        """h, of the weight's shape."""
        return torch.clamp(torch.sigmoid(self.logit) * (_HIGH - _LOW) + _LOW, 0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on the way to its grid; the argument stands for the weight in the graph and is not read."""
        return self._real(self.share)

    def undecided(self, sharpness: Tensor) -> Tensor:
        """sum of 1 - |2 h - 1|^sharpness: 0 where every weight has chosen [eq. 24]."""
        return (1 - (2 * self.share - 1).abs().pow(sharpness)).sum()

    @torch.no_grad()
    def decided(self) -> Tensor:
        """The weight with every choice made; the quantizer rounds it to itself."""
        return self._real((self.share >= 0.5).float())

    def _real(self, share: Tensor) -> Tensor:
        lowest, highest = integer_range(self.quantizer.bits, is_signed=True)
        zero_point = self.quantizer.zero_point
        codes = torch.clamp(self.floor + share, lowest - zero_point, highest - zero_point)
        return codes * self.quantizer.scale
