"""A finished network in the arithmetic of an integer runtime: what accumulators hold, in 32 bits.

An accumulator counts in units of input scale times weight scale; a bias is a multiple of that.

Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference"
(CVPR 2018), section 2.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from causal_dfq.network.operations import (
    CONCATENATION,
    LINEAR,
    WEIGHT_LAYERS,
    attribute,
    clipping_bounds,
    is_value_preserving,
    operation_name,
)
from causal_dfq.quantizer.affine import integer_range, quantize
from causal_dfq.quantizer.modules import IntegerWeight, RequantizedAccumulator
from causal_dfq.quantizer.placement import ACTIVATION_QUANTIZERS

# The other half of what 32 bits hold is for the products.
_LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class BiasedLayer:
    """A layer of a finished graph whose accumulator has a unit: its node, its bias's, its weight and input scale."""

    node: fx.Node
    bias: fx.Node
    weight_name: str
    weight: IntegerWeight
    input_scale: Tensor


def biased_layers(module: fx.GraphModule) -> Iterator[BiasedLayer]:
    """The layers of a finished graph with a bias, an integer weight and an input on a grid."""
    grids = value_grids(module.graph)
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in WEIGHT_LAYERS or len(node.args) < 3:
            continue
        source, weight, bias = node.args[:3]
        if not isinstance(bias, fx.Node) or bias.op != "get_attr" or not isinstance(source, fx.Node):
            continue
        if source not in grids or not isinstance(weight, fx.Node) or weight.op != "call_module":
            continue
        name = str(weight.target)
        yield BiasedLayer(node, bias, name, attribute(module, name), attribute(module, grids[source]).scale)


def accumulator_bias(bias: Tensor, weight: IntegerWeight, input_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (O,) in int32 of a bias (O,), and their scale (O,): input scale times weight scale.

    A channel whose weights are so small that its bias would overflow takes the scale that the bias needs, for both:
    its weights, which say nothing beside it, are rounded again, in place.
    """
    needed = (bias.abs() / (_LARGEST_BIAS * input_scale)).view_as(weight.scale)
    if bool((needed > weight.scale).any()):
        real = weight()
        weight.scale.copy_(torch.maximum(weight.scale, needed))
        ends = integer_range(weight.bits, is_signed=True)
        weight.codes.copy_(quantize(real, weight.scale, weight.zero_point.float(), *ends))
    scale = input_scale * weight.scale.flatten()
    return torch.round(bias.double() / scale.double()).to(torch.int32), scale


@torch.no_grad()
def simulate_accumulators(module: fx.GraphModule) -> None:
    """Gives a finished graph the biases that accumulators hold, and rounds its layers' outputs as they do, in place."""
    for layer in biased_layers(module):
        bias = attribute(module, str(layer.bias.target))
        codes, unit = accumulator_bias(bias, layer.weight, layer.input_scale)
        bias.copy_(codes.double() * unit.double())
        name = _only_quantizer(module, layer.node)
        if name is not None:
            places = 0 if layer.node.target == LINEAR else layer.node.meta["val"].ndim - 2
            quantizer = attribute(module, name)
            of_accumulator = RequantizedAccumulator(
                quantizer.scale, quantizer.zero_point, quantizer.bits, unit.view(-1, *[1] * places)
            )
            owner, _, last = name.rpartition(".")
            module.get_submodule(owner).add_module(last, of_accumulator)


def _only_quantizer(module: fx.GraphModule, node: fx.Node) -> str | None:
    """The quantizer that alone reads a layer's output, through clipping activations, and reads nothing else."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "call_module" and str(node.target).startswith(f"{ACTIVATION_QUANTIZERS}."):
            calls = sum(other.target == node.target for other in module.graph.nodes)
            return str(node.target) if calls == 1 else None
        if clipping_bounds(node) is None:
            return None
    return None


def value_grids(graph: fx.Graph) -> dict[fx.Node, str]:
    """The name of the activation quantizer whose codes a node's values are on, where they are."""
    grids: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op == "call_module" and str(node.target).startswith(f"{ACTIVATION_QUANTIZERS}."):
            grids[node] = str(node.target)
            continue
        found = {grids.get(source, "") for source in _moved(node)}
        if len(found) == 1 and "" not in found:
            grids[node] = found.pop()
    return grids


def _moved(node: fx.Node) -> list[fx.Node]:
    """The tensors whose values a node hands on as they are; empty for other nodes."""
    if node.op != "call_function" or not (is_value_preserving(node) or node.target == CONCATENATION):
        return []
    if operation_name(node) in ("pad", "constant_pad_nd") and any(
        isinstance(value, int | float) and value for value in (*node.args[2:], *node.kwargs.values())
    ):
        return []
    if any(isinstance(value, torch.dtype) and value != torch.float32 for value in (*node.args, *node.kwargs.values())):
        return []
    data = node.args[0]
    return [source for source in (data if isinstance(data, list | tuple) else [data]) if isinstance(source, fx.Node)]
