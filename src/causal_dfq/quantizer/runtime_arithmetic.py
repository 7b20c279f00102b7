"""Operations on codes in the arithmetic of an integer runtime, down to how it breaks a tie.

Source: Jacob et al. (CVPR 2018), section 2.2 and appendix A.2; order and roundings are those of ONNX Runtime's kernels
for x86 with AVX2 and FMA, found by comparing all codes [ours].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CodeOperation(nn.Module):
    """An operation on tensors on grids, rounded to the grid of its result.

    Args:
        scales, zero_points: (n + 1,), of the n tensors and of the result.
    """

    scales: Tensor
    zero_points: Tensor

    def __init__(self, scales: Tensor, zero_points: Tensor) -> None:
        super().__init__()
        self.register_buffer("scales", scales.detach().clone())
        self.register_buffer("zero_points", zero_points.detach().clone())

    def forward(self, *tensors: Tensor) -> Tensor:
        """The n tensors -> multiples of the result's step, of the shape that the operation gives."""
        *of_tensors, of_result = self.scales
        steps = [torch.round(values / scale) for values, scale in zip(tensors, of_tensors, strict=True)]
        result: Tensor = (torch.round(self.code(*steps)) - self.zero_points[-1]) * of_result
        return result

    def code(self, *steps: Tensor) -> Tensor:
        """The n tensors in steps from zero -> the result's code, before it is rounded."""
        raise NotImplementedError


class IntegerAddition(CodeOperation):
    """The sum of two tensors whose shapes broadcast.

    Codes are weighed by the ratios of their steps to the result's; what the zero points make of that is added to the
    second before the first, each product and sum in one rounding.
    """

    def code(self, *steps: Tensor) -> Tensor:
        """The weighed sum of the codes, of the shape of first + second."""
        first, second = steps
        of_first, of_second = self.scales[:2] / self.scales[2]
        zero_of_first, zero_of_second, zero_point = self.zero_points
        constant = zero_point - _multiply_add(zero_of_first, of_first, of_second * zero_of_second)
        started = _multiply_add(second + zero_of_second, of_second, constant)
        return _multiply_add(first + zero_of_first, of_first, started)


class IntegerProduct(CodeOperation):
    """The product of two tensors whose shapes broadcast: that of their steps is exact, and is scaled to codes."""

    def code(self, *steps: Tensor) -> Tensor:
        """The scaled product, of the shape of first * second."""
        first, second = steps
        return first * second * (self.scales[0] * self.scales[1] / self.scales[2]) + self.zero_points[2]


class IntegerMean(CodeOperation):
    """The mean over all places of a tensor (N, C, H, W).

    The sum of its steps is exact; scaled to codes it is rounded before the zero point is added.
    """

    def code(self, *steps: Tensor) -> Tensor:
        """The scaled sum, (N, C, 1, 1)."""
        (values,) = steps
        places = values.shape[2] * values.shape[3]
        factor = self.scales[0] / (self.scales[1] * places)
        return torch.round(values.sum((2, 3), keepdim=True) * factor) + self.zero_points[1]


class IntegerSoftmax(CodeOperation):
    """Softmax over `dimension`: the shares are counted in whole steps of the result's grid in one.

    A share next to a tie may be rounded the other way in the runtime.
    """

    dimension = -1

    def code(self, *steps: Tensor) -> Tensor:
        """The shares, of the tensor's shape."""
        (values,) = steps
        below = (values - values.amax(self.dimension, keepdim=True)).double() * self.scales[0].double()
        shares = torch.softmax(below, self.dimension) * torch.floor(1 / self.scales[1]).double()
        return (torch.round(shares) + self.zero_points[1]).float()


class IntegerChannelSoftmax(IntegerSoftmax):
    """The same over the first dimension of each image, as where branches are weighed against each other."""

    dimension = 1


def _multiply_add(codes: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    """codes * factor + summand in float32, rounded once as a processor does it: in float64 the product is exact."""
    return (codes.double() * factor.double() + summand).float()
