"""Channels of a tensor brought to alike sizes, where one layer writes it and one layer reads it.

All channels of a tensor share one grid, and all inputs of an output channel share another. Between two layers each
channel may be multiplied by a factor of its own, if the first layer's output channel is multiplied by it and the second
layer's input channel divided: both together compute the same, and both grids are used better.

Source: cross-layer equalization, Nagel et al., "Data-free quantization through weight equalization and bias correction"
(ICCV 2019), eq. 7 to 11; the factors' form after SmoothQuant (Xiao et al., ICML 2023), eq. 4; that BatchNorm's moments
and the bits of both sides choose among them, and channels below a clipping activation's end, are [ours].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from causal_dfq.config import FLOAT_BITS, BitWidths
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

# Each works on every channel by itself, and commutes with a positive factor.
_HOMOGENEOUS = frozenset(
    {"dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "flatten", "clone"}
)
_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LARGEST_FACTOR = 8.0
# Standard deviations beyond a channel's mean: what a grid spans, and what no image exceeds.
_SPANNED, _NEVER_EXCEEDED = 3.0, 10.0


@dataclass(frozen=True)
class ChannelMoments:
    """Mean and standard deviation of each channel (C,), float64, before the activation."""

    mean: Tensor
    deviation: Tensor

    def clipped(self, bounds: tuple[float, float]) -> ChannelSizes:
        """What an activation that clips to `bounds`, from 0 or without a lower end, makes of normal channels."""
        is_rectified = bounds[0] == 0
        # A channel without any deviation is a constant.
        deviation = self.deviation.clamp_min(1e-6 * float(self.deviation.max()) or 1e-6)
        reach = self.mean if is_rectified else self.mean.abs()
        spanned, exceeded = (
            (reach + deviations * deviation).clamp(1e-6 * float(deviation.max()), bounds[1])
            for deviations in (_SPANNED, _NEVER_EXCEEDED)
        )
        square = self.mean.square() + deviation.square()
        if is_rectified:
            ratio = self.mean / deviation
            density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
            square = square * torch.special.ndtr(ratio) + self.mean * deviation * density
        return ChannelSizes(spanned, square.clamp(max=bounds[1] ** 2), bounds[1] / exceeded)


@dataclass(frozen=True)
class ChannelSizes:
    """A tensor's channels, (C,) each.

    `spanned`: what a grid should reach to. `mean_square`: of their values. `largest_factor`: by how much they may grow
    before an activation clips them, 1 of those that it clips already.
    """

    spanned: Tensor
    mean_square: Tensor
    largest_factor: Tensor

    @property
    def is_clipped(self) -> Tensor:
        """Which channels an activation clips."""
        return self.largest_factor <= 1


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


def equalize(folded: fx.GraphModule, captured: fx.GraphModule, widths: BitWidths) -> fx.GraphModule:
    """A copy of the folded graph with equalized channels; it computes the same.

    A channel whose values an activation clips keeps its size. A channel counts as not clipped if ten of its standard
    deviations stay below: `captured`, the graph with its BatchNorms, knows them. Tensors that several layers read or
    write, and layers without a BatchNorm behind, stay as they are.
    """
    equalized = fx.GraphModule(folded, copy.deepcopy(folded.graph))
    equalized.add_module(LAYERS, copy.deepcopy(folded.get_submodule(LAYERS)))
    moments = {name: ChannelMoments(mean, deviation) for name, mean, deviation in channel_moments(captured)}
    for link in _links(equalized.graph, moments):
        writer, reader = (attribute(equalized, f"{LAYERS}.{node.name}") for node in (link.writer, link.reader))
        sizes = moments[link.writer.name].clipped(link.bounds)
        weight = by_group(reader.weight.detach().double(), link.groups)
        _scale(writer, reader, link.groups, best_factors(weight, sizes, widths))
    return fx.GraphModule(equalized, equalized.graph)


def _links(graph: fx.Graph, moments: Mapping[str, ChannelMoments]) -> Iterator[_Link]:
    for writer in weight_layer_nodes(graph):
        if writer.name not in moments:
            continue
        node, bounds = writer, UNCLIPPED
        while len(node.users) == 1:
            node = next(iter(node.users))
            clipped = clipping_bounds(node)
            if is_weight_layer(node):
                if _reads_channels(node, len(moments[writer.name].mean)):
                    yield _Link(writer, node, bounds)
                break
            if clipped is not None and clipped[0] == 0:
                bounds = (0.0, min(bounds[1], clipped[1]))
            elif operation_name(node) not in _HOMOGENEOUS:
                break


def _reads_channels(reader: fx.Node, channels: int) -> bool:
    """Whether each of the channels is an input channel of the reader, and not, for instance, a row of tokens."""
    source = reader.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    return shape[1] == channels and (reader.target != LINEAR or len(shape) == 2)


def by_group(weight: Tensor, groups: int) -> Tensor:
    """A weight (O, I / groups, ...) as (groups, O / groups, I / groups, places)."""
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)


def best_factors(weight: Tensor, sizes: ChannelSizes, widths: BitWidths) -> Tensor:
    """A factor for each channel (I,), of those that lead to the least expected error of the reader's output.

    Candidates are w^(1 - a) / r^a for exponents a from 0 to 1, and 1, where w is a channel's largest weight and r what
    it spans; clipped channels keep 1.

    Args:
        weight: the reader's, as `by_group` gives it.
    """
    largest = weight.abs().amax((1, 3)).flatten()
    largest = largest.clamp_min(1e-6 * float(largest.max()))
    candidates = [torch.ones_like(largest)]
    for exponent in _EXPONENTS:
        factors = largest ** (1 - exponent) / sizes.spanned**exponent
        anchored = factors[sizes.is_clipped] if bool(sizes.is_clipped.any()) else factors
        factors = factors / anchored.log().mean().exp()
        factors = factors.minimum(sizes.largest_factor).clamp(1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
        candidates.append(torch.where(sizes.is_clipped, 1.0, factors))
    errors = [expected_error(weight, sizes, factors, widths) for factors in candidates]
    return candidates[errors.index(min(errors))]


def expected_error(weight: Tensor, sizes: ChannelSizes, factors: Tensor, widths: BitWidths) -> float:
    """The summed variance of the reader's outputs that rounding of its input and of its weight leads to.

    d_a^2 sum w^2 / s^2 + sum_o d_o^2 sum_i s_i^2 E[a_i^2] over all weights w and over the weights of each output o,
    where d_a = max s r / (2^b - 1) is the input's step and d_o = max |w| / s / (2^(b - 1) - 1) that of an output
    channel. A step's error is uniform: both lack a factor of 12.

    Args:
        weight: the reader's, as `by_group` gives it.
        factors: s, (I,).
    """
    groups, _, inputs, places = weight.shape
    of_inputs = factors.view(groups, 1, inputs, 1)
    scaled = weight / of_inputs
    of_input = of_weight = 0.0
    if widths.activation != FLOAT_BITS:
        step = float((factors * sizes.spanned).max()) / (2**widths.activation - 1)
        of_input = step**2 * float(scaled.square().sum())
    if widths.weight != FLOAT_BITS:
        steps = scaled.abs().amax((2, 3), keepdim=True) / (2 ** (widths.weight - 1) - 1)
        square = of_inputs.square() * sizes.mean_square.view_as(of_inputs)
        of_weight = places * float((steps.square() * square).sum())
    return of_input + of_weight


@torch.no_grad()
def _scale(writer: nn.Module, reader: nn.Module, groups: int, factors: Tensor) -> None:
    for parameter in (writer.weight, writer.bias):
        assert isinstance(parameter, Tensor)
        parameter.copy_(parameter.double() * factors.view(-1, *[1] * (parameter.ndim - 1)))
    weight = reader.weight
    assert isinstance(weight, Tensor)
    divided = by_group(weight.double(), groups) / factors.view(groups, 1, -1, 1)
    weight.copy_(divided.reshape(weight.shape))
