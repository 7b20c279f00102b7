"""Q's weights and biases in closed form, layer by layer, before any gradient step.

Each layer is fitted to what P's makes of the same images, on what the layers before it hand on, by least squares
(`quantizer/second_order.py`). The images are drawn once for all layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from causal_dfq.network.fold import LAYERS
from causal_dfq.network.operations import LINEAR, attribute, input_name, weight_layer_nodes
from causal_dfq.network.patches import group_count, kernel_size_of, patches_at, place_count
from causal_dfq.network.units import Unit
from causal_dfq.quantizer.affine import integer_range
from causal_dfq.quantizer.modules import WeightQuantizer
from causal_dfq.quantizer.placement import WEIGHT_QUANTIZERS
from causal_dfq.quantizer.second_order import Moments, joined, least_squares_weight, round_in_order, within_cell
from causal_dfq.training.unit_walk import CHUNK, UnitData, UnitWalk, reconstruction_units
from causal_dfq.training.views import NetworkViews

# Between two units: what P and Q make, before and behind the unit.
_TENSORS = 4
# Of a layer's fan-in squared: three moments, and what is solved with them.
_MATRICES = 6


@dataclass(frozen=True)
class RoundingSettings:
    """How a layer is rounded.

    Args:
        samples: places that a layer is looked at, over all images, if it has so many.
        samples_of_input: of a layer of few inputs fewer places: so many for each input of an output channel.
        pull: how much a weight of 4 bits is held to P's, in units of the mean over its inputs of their sums of squares.
        damping: of the second moments, in the same units.
        largest_bytes: what a tensor between two units may take over all images; where it would take more, fewer images,
            drawn at random, are looked at.
        largest_fan_in: inputs of an output channel beyond which second moments would not fit into memory; such a layer
            stays on the grids of its weight.
    """

    samples: int = 65536
    samples_of_input: int = 512
    pull: float = 0.2
    damping: float = 0.01
    largest_fan_in: int = 8192
    largest_bytes: int = 2 * 2**30

    @classmethod
    def within(cls, free: float) -> RoundingSettings:
        """Settings whose walk takes no more than so many bytes: fewer images, and no layer of too many inputs."""
        usual = cls()
        of_moments = math.isqrt(int(free / 2 / (_MATRICES * torch.float64.itemsize)))
        return replace(
            usual,
            largest_bytes=min(usual.largest_bytes, int(free / 2 / _TENSORS)),
            largest_fan_in=min(usual.largest_fan_in, of_moments),
        )

    def samples_of(self, fan_in: int) -> int:
        """Places that a layer with so many inputs of an output channel is looked at, over all images.

        Least squares over few unknowns want few samples; a depthwise layer of many channels would copy gigabytes.
        """
        return min(self.samples, self.samples_of_input * fan_in)

    def pull_of(self, bits: int) -> float:
        """Twice as much for every two bits more: the finer the grids, the less has a layer to make up for [ours]."""
        pull: float = self.pull * 2 ** ((bits - 4) / 2)
        return pull


def layer_rounding(views: NetworkViews, images: Tensor, settings: RoundingSettings, seed: int) -> UnitWalk:
    """Rounds Q's layers on images (N, C, H, W), a unit a step; `seed` chooses the places that are looked at."""

    def fit(number: int, unit: Unit, data: UnitData) -> None:
        random = torch.Generator().manual_seed(seed + number)
        for name in unit.layers:
            round_layer(views, unit, name, data, settings, random)

    return UnitWalk(views, _as_many_as_fit(views, images, settings.largest_bytes, seed), fit)


def _as_many_as_fit(views: NetworkViews, images: Tensor, largest_bytes: int, seed: int) -> Tensor:
    """As many of the images as leave no tensor between two units larger."""
    count = most_images(views, largest_bytes)
    if count >= len(images):
        return images
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images[chosen.sort().values.to(images.device)]


def most_images(views: NetworkViews, largest_bytes: int) -> int:
    """Of how many images the largest tensor between two units takes so many bytes."""
    values = {node.name: node.meta.get("val") for node in views.folded.graph.nodes}
    largest = max(values[unit.result][0].numel() for unit in reconstruction_units(views.folded))
    count: int = max(1, largest_bytes // (largest * torch.float32.itemsize))
    return count


@torch.no_grad()
def round_layer(
    views: NetworkViews, unit: Unit, name: str, data: UnitData, settings: RoundingSettings, random: torch.Generator
) -> None:
    """Sets the weight of one layer of Q, its grids and its bias; a layer whose weight is not rounded stays."""
    quantizer = quantizer_of(views.quantized, name)
    layer, pretrained = (network.get_submodule(f"{LAYERS}.{name}") for network in (views.quantized, views.folded))
    p_weight, p_bias = parameters_of(pretrained)
    if quantizer is None or p_weight[0].numel() > settings.largest_fan_in:
        return
    weight, bias = parameters_of(layer)
    samples = settings.samples_of(p_weight[0].numel())
    moments = layer_moments(views, unit, name, data, samples, random)
    groups = len(moments.own)
    nearest = least_squares_weight(joined(p_weight, p_bias, groups), moments, settings.pull_of(quantizer.bits))
    rounded = rounded_on_own_grid(quantizer, nearest, weight.shape, moments, settings.damping)
    real = within_cell(nearest, rounded, quantizer.scale.double().view(groups, -1))
    weight.copy_(real[:, :, :-1].reshape(weight.shape))
    bias.copy_(real[:, :, -1].reshape(bias.shape))


def rounded_on_own_grid(
    quantizer: WeightQuantizer, weight: Tensor, shape: torch.Size, moments: Moments, damping: float
) -> Tensor:
    """Fits a quantizer's grids to a weight, then rounds it; weights (G, O / G, D) as `joined` makes them.

    Args:
        shape: that of the layer's weight, (O, ...).
        damping: of the second moments, as in `RoundingSettings`.
    """
    groups = len(moments.own)
    importance = moments.importance.repeat_interleave(shape[0] // groups, 0).view(shape)
    kind = quantizer.log_scale.dtype
    quantizer.fit(weight[:, :, :-1].reshape(shape).to(kind), importance.to(kind))
    scale, zero_point = (values.double().view(groups, -1) for values in (quantizer.scale, quantizer.zero_point))
    grid = (scale, zero_point, *integer_range(quantizer.bits, is_signed=True))
    return round_in_order(weight, moments, grid, damping)


def moments_in_p(views: NetworkViews, name: str, images: Tensor, samples: int, random: torch.Generator) -> Moments:
    """What a layer of P reads of images (N, C, H, W), at about so many random places."""
    layer = next(node for node in weight_layer_nodes(views.folded.graph) if node.name == name)
    first = next(node.name for node in views.folded.graph.nodes if node.op == "placeholder")
    part = None if input_name(layer) == first else views.part(views.folded, first, input_name(layer))
    kernel_size = kernel_size_of(views.folded, layer)
    of_each = -(-samples // len(images))
    total: Moments | None = None
    for chunk in images.split(CHUNK):
        read = chunk if part is None else views.through(part, chunk)
        patches = _samples(read, layer, kernel_size, _chosen_places(read, layer, len(chunk), of_each, random))
        moments = Moments.of(patches, patches)
        total = moments if total is None else total + moments
    assert total is not None
    return total


def layer_moments(
    views: NetworkViews, unit: Unit, name: str, data: UnitData, samples: int, random: torch.Generator
) -> Moments:
    """What a layer of a unit reads, in P and in Q, at random places of all images."""
    reads = {network: _reading(views, network, unit, name) for network in (views.folded, views.quantized)}
    (folded_part, folded_layer), (quantized_part, quantized_layer) = reads.values()
    kernel_size = kernel_size_of(views.folded, folded_layer)
    of_each = -(-samples // len(data.exact))
    total: Moments | None = None
    for exact, rounded in zip(data.exact.split(CHUNK), data.rounded.split(CHUNK), strict=True):
        read_by_p = exact if folded_part is None else views.through(folded_part, exact)
        read_by_q = rounded if quantized_part is None else views.through(quantized_part, rounded)
        chosen = _chosen_places(read_by_p, folded_layer, len(exact), of_each, random)
        moments = Moments.of(
            _samples(read_by_p, folded_layer, kernel_size, chosen),
            _samples(read_by_q, quantized_layer, kernel_size, chosen),
        )
        total = moments if total is None else total + moments
    assert total is not None
    assert len(total.own) == group_count(folded_layer)
    return total


def _chosen_places(read: Tensor, layer: fx.Node, images: int, of_each: int, random: torch.Generator) -> Tensor:
    """Numbers of places of a convolution's output, the same ones for all images, or of the rows of a linear layer.

    Attention reads its rows token by token or image by image.
    """
    is_linear = layer.target == LINEAR
    places = read.shape[:-1].numel() if is_linear else place_count(layer)
    count = images * of_each if is_linear else of_each
    return torch.randperm(places, generator=random)[:count].to(read.device)


def _samples(read: Tensor, layer: fx.Node, kernel_size: tuple[int, ...], chosen: Tensor) -> Tensor:
    """What a layer reads there, (G, n, D) in float32."""
    if layer.target == LINEAR:
        return read.reshape(-1, read.shape[-1])[chosen][None].float()
    return patches_at(read, layer, kernel_size, chosen).float()


def quantizer_of(quantized: fx.GraphModule, layer: str) -> WeightQuantizer | None:
    """The quantizer of a layer's weight; None where it is not rounded."""
    quantizers = getattr(quantized, WEIGHT_QUANTIZERS, None)
    found = None if quantizers is None else getattr(quantizers, layer, None)
    return found if isinstance(found, WeightQuantizer) else None


def _reading(
    views: NetworkViews, network: fx.GraphModule, unit: Unit, name: str
) -> tuple[fx.GraphModule | None, fx.Node]:
    """From what enters the unit to what a layer of it reads, None where that is the same, and the layer's node."""
    layer = next(node for node in weight_layer_nodes(network.graph) if node.name == name)
    source = input_name(layer)
    return (None if source == unit.source else views.part(network, unit.source, source)), layer


def parameters_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A layer's weight (O, ...) and bias (O,)."""
    weight, bias = attribute(layer, "weight"), attribute(layer, "bias")
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return weight, bias
