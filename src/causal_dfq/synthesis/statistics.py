"""What a network remembers of its training images: the running statistics of its BatchNorms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from causal_dfq.network.operations import attribute, batch_norm_nodes


def running_statistics(module: fx.GraphModule) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance, each (C,), of every BatchNorm of a captured graph, in order."""
    return [
        (attribute(module, str(node.args[3].target)), attribute(module, str(node.args[4].target)))  # type: ignore[union-attr]
        for node in batch_norm_nodes(module.graph)
    ]


class _BatchStatistics(torch.autograd.Function):
    """Mean and biased variance by channel, with the gradient in one pass over the features.

    d mean / d x = 1 / n and d variance / d x = 2 (x - mean) / n, with n values a channel.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        epsilon = 1e-10
        # BatchNorm's own kernel: several times faster than var_mean over the rows of channels_last.
        _, mean, inverse = torch.native_batch_norm(features, None, None, None, None, True, 0.0, epsilon)
        mean = mean.float()
        ctx.save_for_backward(features, mean)
        return mean, inverse.float().pow(-2) - epsilon

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        features, mean = ctx.saved_tensors
        mean_gradient, variance_gradient = gradients
        shape = (1, -1) + (1,) * (features.ndim - 2)
        count = features.numel() // features.shape[1]
        slope = 2 * variance_gradient / count
        offset = mean_gradient / count - slope * mean
        return torch.addcmul(offset.to(features.dtype).view(shape), features, slope.to(features.dtype).view(shape))


def batch_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, each (C,) in float32, of features (N, C, ...)."""
    mean, variance = _BatchStatistics.apply(features)
    return mean, variance


def statistics_distance(
    features: list[Tensor], statistics: list[tuple[Tensor, Tensor]], epsilon: float = 1e-5
) -> Tensor:
    """The BNS loss: how far a batch lies from the training images, seen at every BatchNorm's input.

    Mean over layers and channels of ((mu - mu_r) / sigma_r)^2 + (sigma / sigma_r - 1)^2, where r marks
    the running statistics. Measured in running standard deviations, one weight fits all networks
    [ours]; the idea is common to the field (Yin et al., DeepInversion; Cai et al., ZeroQ).
    """
    distances = []
    for values, (running_mean, running_variance) in zip(features, statistics, strict=True):
        mean, variance = batch_statistics(values)
        deviation = (running_variance + epsilon).sqrt()
        shift = (mean - running_mean) / deviation
        stretch = (variance + epsilon).sqrt() / deviation - 1
        distances.append((shift.square() + stretch.square()).mean())
    return torch.stack(distances).mean()
