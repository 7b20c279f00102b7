"""What stands in a graph: quantizers of activations and weights, and the arithmetic of an integer runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from causal_dfq.quantizer.affine import (
    dequantize,
    fake_quantize,
    integer_range,
    learned_fake_quantize,
    quantize,
)
from causal_dfq.quantizer.ranges import (
    ObservedValues,
    activation_range,
    channel_view,
    weight_min_max,
    weight_range,
    weight_scale,
)

# A little less than a half, which would round to the code beyond.
_HALF = 0.49


class ActivationQuantizer(nn.Module):
    """Static, per tensor, unsigned with a zero point; the step size is learned through its logarithm.

    The logarithm makes a learning rate mean the same relative change in every layer [ours].
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.zero_point = nn.Parameter(torch.zeros(()))

    @property
    def scale(self) -> Tensor:
        """The step size, a scalar."""
        return self.log_scale.exp()

    @torch.no_grad()
    def set_range(self, scale: float, zero_point: float) -> None:
        """Sets the grid; a zero point at the lowest code stays there, since nothing is negative."""
        self.log_scale.fill_(scale).log_()
        self.zero_point.fill_(zero_point)
        self.zero_point.requires_grad_(zero_point != 0)

    def calibrate(self, observed: ObservedValues) -> None:
        """Sets the grid of least squared error on observed values."""
        self.set_range(*activation_range(observed, self.bits))

    @torch.no_grad()
    def hold_zero_point(self) -> None:
        """After a step of training: a zero point is held to values that round to a code."""
        lowest, highest = integer_range(self.bits, is_signed=False)
        # Not to the ends themselves: at the lowest one it would count as fixed.
        self.zero_point.clamp_(lowest - _HALF, highest + _HALF)

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape -> the same, on the grid."""
        lowest, highest = integer_range(self.bits, is_signed=False)
        return learned_fake_quantize(values, self.scale, self.zero_point, lowest, highest)

    @torch.no_grad()
    def freeze(self) -> FrozenActivationQuantizer:
        """The finished quantizer, with an integer zero point."""
        lowest, highest = integer_range(self.bits, is_signed=False)
        zero_point = self.zero_point.round().clamp(lowest, highest)
        return FrozenActivationQuantizer(self.scale, zero_point, self.bits)


class FrozenActivationQuantizer(nn.Module):
    """A finished activation quantizer: scale and zero point are scalars, codes run from 0."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape -> the same, on the grid."""
        lowest, highest = integer_range(self.bits, is_signed=False)
        return fake_quantize(values, self.scale, self.zero_point, lowest, highest)


class Accumulator(nn.Module):
    """Rounds a layer's output to steps of the grid behind it, in the arithmetic of an integer runtime.

    Source: Jacob et al. (CVPR 2018), section 2.2; that the integers are recovered from a sum in float [ours].

    Args:
        unit: what one in the layer's accumulator stands for: (C,), with axes of length 1 behind it for its places.
        scale: the step of the grid, a scalar.
    """

    unit: Tensor
    scale: Tensor

    def __init__(self, unit: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("unit", unit.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, values: Tensor) -> Tensor:
        """A layer's output (N, C, ...) -> multiples of the scale.

        Sums of real products err by less than the accumulator's unit: rounding to it gives the integers back, and the
        one factor from them to codes is what a runtime multiplies by. A tie is broken as it is there.
        """
        accumulated = torch.round(values / self.unit)
        return torch.round(accumulated * (self.unit / self.scale)) * self.scale


class WeightQuantizer(nn.Module):
    """Per output channel and signed; the step sizes are learned through their logarithms [ours]."""

    zero_point: Tensor

    def __init__(self, weight: Tensor, bits: int, is_symmetric: bool) -> None:
        super().__init__()
        self.bits, self.is_symmetric = bits, is_symmetric
        if is_symmetric:
            scale, zero_point = weight_scale(weight, bits), weight.new_zeros(weight.shape[0])
        else:
            scale, zero_point = weight_min_max(weight, bits)
        self.log_scale = nn.Parameter(channel_view(weight, scale.log()))
        self.register_buffer("zero_point", channel_view(weight, zero_point))
        self._rounded: Tensor | None = None

    @contextlib.contextmanager
    def rounded_once(self, weight: Tensor) -> Iterator[None]:
        """Within, the result for this weight, which must not change, is kept: no call rounds it again."""
        self._rounded = self(weight)
        try:
            yield
        finally:
            self._rounded = None

    @property
    def scale(self) -> Tensor:
        """Step sizes (O, 1, ...)."""
        return self.log_scale.exp()

    def use_bits(self, weight: Tensor, bits: int) -> None:
        """Another width, and the grids of least squared error on a weight."""
        self.bits = bits
        self.fit(weight, torch.ones_like(weight))

    @torch.no_grad()
    def fit(self, weight: Tensor, importance: Tensor) -> None:
        """Sets the grids of least squared error on a weight, each entry's error weighted by its importance."""
        if self.is_symmetric:
            scale, zero_point = weight_scale(weight, self.bits, importance), weight.new_zeros(weight.shape[0])
        else:
            scale, zero_point = weight_range(weight, self.bits, importance)
        self.log_scale.copy_(channel_view(weight, scale.log()))
        self.zero_point.copy_(channel_view(weight, zero_point))

    def forward(self, weight: Tensor) -> Tensor:
        """Weight (O, ...) -> the same, on the grid of each channel."""
        if self._rounded is not None:
            return self._rounded
        return learned_fake_quantize(weight, self.scale, self.zero_point, *integer_range(self.bits, True))

    @torch.no_grad()
    def freeze(self, weight: Tensor) -> IntegerWeight:
        """The finished weight in integers."""
        lowest, highest = integer_range(self.bits, is_signed=True)
        codes = quantize(weight, self.scale, self.zero_point, lowest, highest)
        return IntegerWeight(codes.to(torch.int8), self.scale, self.zero_point.to(torch.int8), self.bits)


class IntegerWeight(nn.Module):
    """A finished weight: int8 codes (O, ...), scales and zero points (O, 1, ...)."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point)

    def forward(self) -> Tensor:
        """The real weight that the codes stand for, float32."""
        return dequantize(self.codes.float(), self.scale, self.zero_point.float())
