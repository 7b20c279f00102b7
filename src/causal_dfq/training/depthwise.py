"""Depthwise convolutions as training runs them. [ours]

On a CPU in bfloat16 torch gives their features quickly, but not their gradients: that of the features takes several
times as long as in float32, with a stride a hundred times. In float32 both ways pay for two conversions, which take
longer than the arithmetic. Where the weight is a constant, as it is in P while images are made, the gradient of the
features is a depthwise convolution itself, with the kernel turned round, and as quick as the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from causal_dfq.network.operations import aten

Pair = tuple[int, int]


def grouped_in_float32(features: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """`aten.conv2d` of features (N, C, H, W), with groups, in float32 whatever autocast says."""
    with torch.autocast(features.device.type, enabled=False):
        result: Tensor = aten.conv2d.default(features.float(), weight.float(), bias, *options)
    return result


def constant_depthwise(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """`aten.conv2d` with groups of one channel: features (N, C, H, W), weight (O, 1, kh, kw), bias (O,).

    In bfloat16 where a CPU is under autocast to it, each channel has one filter and no parameter has a gradient; else
    in float32.
    """
    options = _pair(stride), _pair(padding), _pair(dilation)
    if _is_quick(features, weight, bias, *options[1:]):
        result: Tensor = _OfConstant.apply(features, weight, bias, *options)
        return result
    return grouped_in_float32(features, weight, bias, *options, groups)


def _is_quick(features: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair, dilation: Pair) -> bool:
    kind = features.device.type
    if kind != "cpu" or not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) != torch.bfloat16:
        return False
    is_constant = not weight.requires_grad and (bias is None or not bias.requires_grad)
    has_one_filter = len(weight) == features.shape[1] and weight.shape[1] == 1
    reaches = all(pad <= reach for pad, reach in zip(padding, _reach(weight, dilation), strict=True))
    return is_constant and has_one_filter and reaches


class _OfConstant(torch.autograd.Function):
    """A depthwise convolution of one filter a channel, whose parameters are constants, in bfloat16."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
    ) -> Tensor:
        ctx.weight, ctx.options = weight.bfloat16(), (features.shape[2:], stride, padding, dilation)
        ctx.dtype = features.dtype
        result: Tensor = aten.conv2d.default(
            features.bfloat16(),
            ctx.weight,
            None if bias is None else bias.bfloat16(),
            stride,
            padding,
            dilation,
            len(weight),
        )
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].bfloat16().contiguous(memory_format=torch.channels_last)
        to_features = gradient_of_features(gradient, ctx.weight, *ctx.options)
        return to_features.to(ctx.dtype), None, None, None, None, None


def gradient_of_features(
    gradient: Tensor, weight: Tensor, size: Sequence[int], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The gradient (N, C, *size) of what a depthwise convolution reads, from that of its result (N, C, h, w).

    Each value of the result looks at its place in the features through the kernel; each place of the features is seen
    through the kernel turned round, by the values of a result of stride 1, of which those that a stride leaves out have
    no gradient. `padding` does not exceed what the kernel reaches.
    """
    reach = _reach(weight, dilation)
    if stride != (1, 1):
        gradient = _spread(gradient, [n + 2 * pad - r for n, pad, r in zip(size, padding, reach, strict=True)], stride)
    margins = [r - pad for r, pad in zip(reach, padding, strict=True)]
    result: Tensor = aten.conv2d.default(gradient, weight.flip(2, 3), None, [1, 1], margins, dilation, len(weight))
    return result


def _spread(values: Tensor, size: Sequence[int], stride: Pair) -> Tensor:
    """Values (N, C, h, w) at every so many places of (N, C, *size), in channels_last; zeros elsewhere."""
    count, channels, height, width = values.shape
    result = values.new_zeros(count, *size, channels).permute(0, 3, 1, 2)
    down, right = stride
    result[:, :, : (height - 1) * down + 1 : down, : (width - 1) * right + 1 : right] = values
    return result


def _reach(weight: Tensor, dilation: Pair) -> Pair:
    """How far from its first place a kernel sees, by dimension."""
    height, width = ((side - 1) * apart for side, apart in zip(weight.shape[2:], dilation, strict=True))
    return height, width


def _pair(values: Sequence[int]) -> Pair:
    """One number for both dimensions, or two."""
    return (values[0], values[-1])
