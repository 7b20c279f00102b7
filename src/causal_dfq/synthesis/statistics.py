"""What a network remembers of its training images: the running statistics of its BatchNorms."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from causal_dfq.network.operations import attribute, batch_norm_nodes


def running_statistics(module: fx.GraphModule) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance, each (C,), of every BatchNorm of a captured graph, in order."""
    return [
        (attribute(module, str(node.args[3].target)), attribute(module, str(node.args[4].target)))  # type: ignore[union-attr]
        for node in batch_norm_nodes(module.graph)
    ]


def batch_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, each (C,), of features (N, C, ...), in float32."""
    rows = features.movedim(1, -1).flatten(0, -2).float()
    variance, mean = torch.var_mean(rows, 0, correction=0)
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
