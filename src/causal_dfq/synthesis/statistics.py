"""What a network remembers of its training images: the running statistics of its BatchNorms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from causal_dfq.fusion import Formula, by_place, is_channels_last, is_fusing
from causal_dfq.network.operations import attribute, batch_norm_nodes


def running_statistics(module: fx.GraphModule) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance, each (C,), of every BatchNorm of a captured graph, in order."""
    return [
        (attribute(module, str(node.args[3].target)), attribute(module, str(node.args[4].target)))  # type: ignore[union-attr]
        for node in batch_norm_nodes(module.graph)
    ]


@Formula
def _sums(features: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Over the places of each image of (N, P, C): sums of the distances from a centre (C,) and of their squares."""
    distance = features.float() - centre
    return distance.sum(1), (distance * distance).sum(1)


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, each (C,) in float32, of (N, C, ...); no gradient."""
    if is_fusing() and is_channels_last(features):
        rows = by_place(features)
        centre = rows[0].float().mean(0)
        sums, squares = _sums(rows, centre)
        return statistics_of_sums(sums, squares, centre, _values_of_channel(features))
    epsilon = 1e-10
    # BatchNorm's own kernel: several times faster than var_mean over the rows of channels_last.
    _, mean, inverse = torch.native_batch_norm(features, None, None, None, None, True, 0.0, epsilon)
    return mean.float(), inverse.float().pow(-2) - epsilon


def _values_of_channel(features: Tensor) -> int:
    return features.numel() // features.shape[1]


def statistics_of_sums(sums: Tensor, squares: Tensor, centre: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, each (C,), from the sums by image (N, C) of distances from a centre near the mean.

    A channel has `count` values.
    """
    shift = sums.sum(0) / count
    return centre + shift, (squares.sum(0) / count - shift.square()).clamp_min(0)


def statistics_gradient(
    mean: Tensor, mean_gradient: Tensor, variance_gradient: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The gradient of `channel_statistics` as slope and shift, each (C,): it is slope * features + shift.

    d mean / d x = 1 / n and d variance / d x = 2 (x - mean) / n, with n = `count` values a channel.
    """
    slope = 2 * variance_gradient / count
    return slope, mean_gradient / count - slope * mean


class _BatchStatistics(torch.autograd.Function):
    """`channel_statistics`, with the gradient in one pass over the features."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = channel_statistics(features)
        ctx.save_for_backward(features, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        features, mean = ctx.saved_tensors
        to_mean, to_variance = gradients
        slope, shift = statistics_gradient(mean, to_mean, to_variance, _values_of_channel(features))
        shape = (1, -1) + (1,) * (features.ndim - 2)
        return torch.addcmul(shift.to(features.dtype).view(shape), features, slope.to(features.dtype).view(shape))


def batch_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, each (C,) in float32, of features (N, C, ...)."""
    mean, variance = _BatchStatistics.apply(features)
    return mean, variance


def statistics_distance(
    found: list[tuple[Tensor, Tensor]], running: list[tuple[Tensor, Tensor]], epsilon: float = 1e-5
) -> Tensor:
    """The BNS loss: how far a batch lies from the training images, seen at every BatchNorm's input.

    Both lists hold mean and variance, each (C,), by BatchNorm. Mean over layers and channels of
    ((mu - mu_r) / sigma_r)^2 + (sigma / sigma_r - 1)^2, where r marks the running statistics. Measured in
    running standard deviations, one weight fits all networks [ours]; the idea is common to the field (Yin
    et al., DeepInversion; Cai et al., ZeroQ).
    """
    means, variances = (torch.cat(values) for values in zip(*found, strict=True))
    running_means, running_variances = (torch.cat(values) for values in zip(*running, strict=True))
    deviations = (running_variances + epsilon).sqrt()
    shift = (means - running_means) / deviations
    stretch = (variances + epsilon).sqrt() / deviations - 1
    by_layer = (shift.square() + stretch.square()).split([len(mean) for mean, _ in found])
    return torch.stack([distances.mean() for distances in by_layer]).mean()
