"""The generator's normalization, its style and its activation, in one pass over memory each way and one for sums.

y = leaky_relu(scale * (x - mean) / deviation + shift), mean and deviation of the batch by channel, scale and shift
of each image and channel. [ours] this arithmetic; style modulation after StyleGAN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from causal_dfq.fusion import Formula, by_place, from_memory_order, is_fusing, like_in_memory
from causal_dfq.synthesis.statistics import channel_statistics

EPSILON = 1e-5
SLOPE = 0.2


@Formula
def _modulate(features: Tensor, multiplier: Tensor, offset: Tensor) -> Tensor:
    """(N, P, C) features; (N, 1, C) multiplier and offset."""
    values = features.float() * multiplier + offset
    return torch.where(values > 0, values, SLOPE * values).to(features.dtype)


@Formula
def _sums(gradient: Tensor, features: Tensor, multiplier: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Over the places of each image: (N, C) sums of the gradient before the activation, alone and times features."""
    values = features.float()
    # Summing up, a mask is slower than this arithmetic: 1 above 0, the slope below.
    incoming = gradient.float() * torch.clamp(torch.sign(values * multiplier + offset), SLOPE, 1)
    return incoming.sum(1), (incoming * values).sum(1)


@Formula
def _gradient(
    gradient: Tensor, features: Tensor, multiplier: Tensor, offset: Tensor, slope: Tensor, shift: Tensor
) -> Tensor:
    values = features.float()
    incoming = gradient.float()
    incoming = torch.where(values * multiplier + offset > 0, incoming, SLOPE * incoming)
    return (incoming * multiplier + (values * slope + shift)).to(features.dtype)


class _StyledNorm(torch.autograd.Function):
    """`styled_norm` of features in channels_last; keeps them and no mask."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        mean, variance = channel_statistics(features)
        inverse = torch.rsqrt(variance + EPSILON)
        multiplier = scale.float() * inverse
        offset = shift.float() - mean * multiplier
        ctx.save_for_backward(features, scale, mean, inverse, multiplier, offset)
        modulated = _modulate(by_place(features), multiplier[:, None], offset[:, None])
        return from_memory_order(modulated, features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, scale, mean, inverse, multiplier, offset = ctx.saved_tensors
        gradient = by_place(like_in_memory(gradients[0], features))
        arguments = (by_place(features), multiplier[:, None], offset[:, None])
        to_shift, with_values = _sums(gradient, *arguments)
        to_scale = inverse * (with_values - mean * to_shift)
        # BatchNorm's gradient: what a common shift and a common stretch of the channel would do is taken out.
        count = features.numel() // features.shape[1]
        stretch = (scale * to_scale).sum(0) / count
        slope = -inverse.square() * stretch
        common = -inverse * (scale * to_shift).sum(0) / count - slope * mean
        result = _gradient(gradient, *arguments, slope, common)
        return from_memory_order(result, features), to_scale.to(scale.dtype), to_shift.to(scale.dtype)


def styled_norm(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Features (N, C, H, W), normalized over batch and places, times scale (N, C), plus shift (N, C), leaky ReLU."""
    if not is_fusing():
        normalized = functional.batch_norm(features, None, None, training=True, eps=EPSILON)
        return functional.leaky_relu(normalized * scale[:, :, None, None] + shift[:, :, None, None], SLOPE)
    result: Tensor = _StyledNorm.apply(features.contiguous(memory_format=torch.channels_last), scale, shift)
    return result
