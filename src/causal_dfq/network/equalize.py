"""Channels of a tensor brought to alike sizes, where one layer writes it and one layer reads it.

All channels of a tensor share one grid, and all inputs of an output channel share another. Between two layers each
channel may be multiplied by a factor of its own, if the first layer's output channel is multiplied by it and the second
layer's input channel divided: both together compute the same, and both grids are used better.

Source: cross-layer equalization, Nagel et al., "Data-free quantization through weight equalization and bias correction"
(ICCV 2019), eq. 7 to 11; the factors after SmoothQuant (Xiao et al., ICML 2023), eq. 4; that BatchNorm tells the reach
of a channel, and how those below a clipping activation's end grow up to it, are [ours].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from causal_dfq.network.fold import LAYERS, channel_moments
from causal_dfq.network.operations import (
    LINEAR,
    UNCLIPPED,
    attribute,
    clipping_bounds,
    is_weight_layer,
    operation_name,
    weight_layer_nodes,
)

_POOLS = frozenset({"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"})
_RESHAPES = frozenset({"flatten", "reshape", "view", "squeeze"})
_LARGEST_FACTOR = 8.0
# Standard deviations beyond a channel's mean that images are taken not to exceed.
_NEVER_EXCEEDED = 10.0


@dataclass(frozen=True)
class _Link:
    """A layer that writes a tensor, the only one that reads it, and between which values the tensor is clipped."""

    writer: fx.Node
    reader: fx.Node
    bounds: tuple[float, float]

    @property
    def groups(self) -> int:
        """Of the reader."""
        groups = self.reader.args[6] if len(self.reader.args) > 6 else 1
        assert isinstance(groups, int)
        return groups


def equalize(folded: fx.GraphModule, captured: fx.GraphModule) -> fx.GraphModule:
    """A copy of the folded graph with equalized channels.

    It computes the same; but where an activation clips at a finite end, channels that ten of their standard deviations
    keep below it are clipped at that many deviations or later. `captured`, the graph with its BatchNorms, knows the
    deviations. Channels that reach the end within them, tensors that several layers read or write, and layers without a
    BatchNorm behind stay as they are.
    """
    equalized = fx.GraphModule(folded, copy.deepcopy(folded.graph))
    equalized.add_module(LAYERS, copy.deepcopy(folded.get_submodule(LAYERS)))
    norms = {name: (mean, deviation) for name, mean, deviation in channel_moments(captured)}
    for link in _links(equalized.graph, {name: len(mean) for name, (mean, _) in norms.items()}):
        writer, reader = (attribute(equalized, f"{LAYERS}.{node.name}") for node in (link.writer, link.reader))
        reach = channel_reach(*norms[link.writer.name], link.bounds)
        _scale(writer, reader, link.groups, equal_factors(by_group(reader.weight, link.groups), reach, link.bounds[1]))
    return fx.GraphModule(equalized, equalized.graph)


def _links(graph: fx.Graph, channels: Mapping[str, int]) -> Iterator[_Link]:
    for writer in weight_layer_nodes(graph):
        if writer.name not in channels:
            continue
        node, bounds = writer, UNCLIPPED
        while len(node.users) == 1:
            node = next(iter(node.users))
            clipped = clipping_bounds(node)
            if is_weight_layer(node):
                if _reads_channels(node, channels[writer.name]):
                    yield _Link(writer, node, bounds)
                break
            if clipped is not None and clipped[0] == 0:
                bounds = (0.0, min(bounds[1], clipped[1]))
            elif not _keeps_channels(node):
                break


def _keeps_channels(node: fx.Node) -> bool:
    """Whether the node makes each channel (dimension 1) of its one argument by itself, and a factor passes through."""
    source = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(source, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
        return False
    shape, name = source.meta["val"].shape, operation_name(node)
    if name in _POOLS:
        return len(shape) == 4
    if name == "mean":
        given = node.args[1] if len(node.args) > 1 else None
        return isinstance(given, list | tuple) and all(isinstance(dim, int) and dim % len(shape) >= 2 for dim in given)
    result = node.meta["val"].shape
    return name in _RESHAPES and len(result) >= 2 and result[1] == shape[1] and all(side == 1 for side in shape[2:])


def _reads_channels(reader: fx.Node, channels: int) -> bool:
    """Whether each of the channels is an input channel of the reader, and not, for instance, a row of tokens."""
    source = reader.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    return shape[1] == channels and (reader.target != LINEAR or len(shape) == 2)


def by_group(weight: Tensor, groups: int) -> Tensor:
    """A weight (O, I / groups, ...) as (groups, O / groups, I / groups, places)."""
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)


def channel_reach(mean: Tensor, deviation: Tensor, bounds: tuple[float, float]) -> Tensor:
    """What channels of these moments (C,) never exceed in magnitude, after a clip to bounds, from 0 or from no end."""
    reach = (mean if bounds[0] == 0 else mean.abs()) + _NEVER_EXCEEDED * deviation
    # A channel that is never above 0, or a constant 0, has no size.
    return reach.clamp(min(1e-6 * max(float(reach.max()), 1e-6), bounds[1]), bounds[1])


def equal_factors(weight: Tensor, reach: Tensor, end: float) -> Tensor:
    """A factor for each channel (I,): sqrt(w / r) in common units, w its largest weight in the reader, r its reach.

    A reader with one input to each output, whose weight's grid absorbs any factor, leaves 1 / r. Where an activation
    clips at a finite `end`, channels that reach it have the factor 1, the others grow, and at most to that end.

    Args:
        weight: the reader's, as `by_group` gives it.
        reach: (I,), as `channel_reach` gives it.
    """
    largest = weight.detach().double().abs().amax((1, 3)).flatten()
    largest = largest.clamp_min(1e-6 * max(float(largest.max()), 1e-6))
    factors = 1 / reach if weight.shape[2] == 1 else (largest / reach).sqrt()
    if math.isinf(end):
        return (factors / factors.log().mean().exp()).clamp(1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    is_clipped = reach >= end
    unit = factors[is_clipped].min() if bool(is_clipped.any()) else factors.min()
    return torch.where(is_clipped, 1.0, (factors / unit).clamp(1, _LARGEST_FACTOR).minimum(end / reach))


@torch.no_grad()
def _scale(writer: nn.Module, reader: nn.Module, groups: int, factors: Tensor) -> None:
    for parameter in (writer.weight, writer.bias):
        assert isinstance(parameter, Tensor)
        parameter.copy_(parameter.double() * factors.view(-1, *[1] * (parameter.ndim - 1)))
    weight = reader.weight
    assert isinstance(weight, Tensor)
    divided = by_group(weight.double(), groups) / factors.view(groups, 1, -1, 1)
    weight.copy_(divided.reshape(weight.shape))
