"""A 3x3 convolution to a few channels, of the middle of a map, as one matrix product and nine shifted additions. [ours]

A convolution to three channels leaves most of the vector units idle. Every place times every tap of the kernel is a
product of two matrices, and nine times as many results as channels fill them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from causal_dfq.fusion import Formula, in_memory_order

_TAPS = 3


def _windows(by_tap: Tensor, height: int, width: int) -> list[Tensor]:
    """(9, O, N, H, W) -> for each tap the (O, N, height, width) that the middle of the result reads, views."""
    top, left = (by_tap.shape[3] - height) // 2 - 1, (by_tap.shape[4] - width) // 2 - 1
    return [
        by_tap[tap, :, :, top + tap // _TAPS :, left + tap % _TAPS :][..., :height, :width] for tap in range(_TAPS**2)
    ]


@Formula
def _sum_of_windows(by_tap: Tensor, height: int, width: int) -> Tensor:
    first, *others = _windows(by_tap, height, width)
    total = first.float()
    for window in others:
        total = total + window.float()
    return total


class _ConvolveMiddle(torch.autograd.Function):
    """Features (N, C, H, W) in channels_last, kernel (O, C, 3, 3)."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, height: int, width: int) -> Tensor:
        by_tap = kernel.permute(2, 3, 0, 1).flatten(0, 2).to(features.dtype)
        ctx.save_for_backward(features, by_tap)
        ctx.kernel, ctx.size = (kernel.shape, kernel.dtype), (height, width)
        products = by_tap @ in_memory_order(features).flatten(0, 2).T
        total: Tensor = _sum_of_windows(_by_tap(products, features), height, width)
        return total.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, by_tap = ctx.saved_tensors
        (outputs, inputs, _, _), kernel_type = ctx.kernel
        count, _, rows, columns = features.shape
        to_products = features.new_zeros(len(by_tap), count * rows * columns)
        gradient = gradients[0].transpose(0, 1)
        for window in _windows(_by_tap(to_products, features), *ctx.size):
            window.copy_(gradient)
        to_features = (to_products.T @ by_tap).view(count, rows, columns, inputs).permute(0, 3, 1, 2)
        to_kernel = to_products @ in_memory_order(features).flatten(0, 2)
        to_kernel = to_kernel.view(_TAPS, _TAPS, outputs, inputs).permute(2, 3, 0, 1)
        return to_features, to_kernel.to(kernel_type), None, None


def _by_tap(products: Tensor, features: Tensor) -> Tensor:
    """(9 O, N H W) -> (9, O, N, H, W)."""
    count, _, rows, columns = features.shape
    return products.view(_TAPS**2, -1, count, rows, columns)


def convolve_middle(features: Tensor, kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle (height, width) of conv2d(features, kernel, padding=1), at least one place from every border.

    (N, C, H, W), (O, C, 3, 3) -> (N, O, height, width) in float32; the arithmetic has the features' type.
    """
    features = features.contiguous(memory_format=torch.channels_last)
    result: Tensor = _ConvolveMiddle.apply(features, kernel, *size)
    return result
