"""A finished network in the arithmetic of an integer runtime: what accumulators hold, in 32 bits.

An accumulator counts in units of input scale times weight scale; a bias is a multiple of that.

Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference"
(CVPR 2018), section 2.4.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from causal_dfq.network.fold import has_own_scale, norm_affine
from causal_dfq.network.operations import (
    LINEAR,
    WEIGHT_LAYERS,
    aten,
    attribute,
    clipping_bounds,
    hands_values_on,
    has_running_statistics,
    operation_name,
)
from causal_dfq.quantizer.affine import integer_range, quantize
from causal_dfq.quantizer.modules import Accumulator, IntegerWeight
from causal_dfq.quantizer.placement import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from causal_dfq.quantizer.runtime_arithmetic import (
    CodeOperation,
    IntegerAddition,
    IntegerChannelSoftmax,
    IntegerMean,
    IntegerProduct,
    IntegerSoftmax,
)

ACCUMULATORS = "accumulators"
_NORM = "norm_of_"
# The other half of what 32 bits hold is for the products.
_LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class SimulatedOperation:
    """An ATen operator whose tensor arguments are followed by these constants, and what simulates it on codes."""

    operator: OpOverload
    constants: tuple[Any, ...]
    kind: type[CodeOperation]

    def is_of(self, node: fx.Node) -> bool:
        """Whether a node calls the operator with the constants."""
        if node.target != self.operator or node.kwargs:
            return False
        given = [argument for argument in node.args if not isinstance(argument, fx.Node)]
        if self.operator == aten.softmax.int and len(given) == 1:
            dimensions = node.meta["val"].ndim
            return bool(given[0] % dimensions == self.constants[0] % dimensions)
        return list(self.constants) == given

    def sources(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The tensors that it reads."""
        return tuple(node.args[: len(node.args) - len(self.constants)])  # type: ignore[arg-type]


CODE_OPERATIONS: dict[str, SimulatedOperation] = {
    f"{ACCUMULATORS}.of_sums": SimulatedOperation(aten.add.Tensor, (), IntegerAddition),
    f"{ACCUMULATORS}.of_products": SimulatedOperation(aten.mul.Tensor, (), IntegerProduct),
    f"{ACCUMULATORS}.of_pools": SimulatedOperation(aten.adaptive_avg_pool2d.default, ([1, 1],), IntegerMean),
    f"{ACCUMULATORS}.of_means": SimulatedOperation(aten.mean.dim, ([2, 3], True), IntegerMean),
    f"{ACCUMULATORS}.of_softmaxes": SimulatedOperation(aten.softmax.int, (-1,), IntegerSoftmax),
    f"{ACCUMULATORS}.of_channel_softmaxes": SimulatedOperation(aten.softmax.int, (1,), IntegerChannelSoftmax),
}


@dataclass(frozen=True)
class BiasedLayer:
    """A layer of a finished graph whose accumulator has a unit: its name, node, bias's node, weight and input scale."""

    name: str
    node: fx.Node
    bias: fx.Node
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
        name = str(weight.target).removeprefix(f"{WEIGHT_QUANTIZERS}.")
        found, quantizer = attribute(module, str(weight.target)), attribute(module, grids[source])
        yield BiasedLayer(name, node, bias, found, quantizer.scale)


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
def simulate_integers(module: fx.GraphModule) -> None:
    """Makes a finished graph round as an integer runtime does, in place.

    Biases are what accumulators hold, the outputs of layers are rounded as accumulators are, sums, products, means and
    softmaxes as those of codes are, and a BatchNorm that no layer has absorbed is a product and a sum, which every
    runtime rounds alike.
    """
    _simulate_accumulators(module)
    _simulate_operations(module)
    _write_norms_out(module)
    module.recompile()


def _write_norms_out(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if not has_running_statistics(node) or not has_own_scale(node):
            continue
        owner = nn.Module()
        shape = (-1, *[1] * (node.meta["val"].ndim - 2))
        for name, values in zip(("multiplier", "offset"), norm_affine(module, node), strict=True):
            owner.register_buffer(name, values.float().view(shape))
        module.add_module(f"{_NORM}{node.name}", owner)
        with module.graph.inserting_before(node):
            factor, offset = (module.graph.get_attr(f"{_NORM}{node.name}.{name}") for name in ("multiplier", "offset"))
            product = module.graph.call_function(aten.mul.Tensor, (node.args[0], factor))
            total = module.graph.call_function(aten.add.Tensor, (product, offset))
        for written in (product, total):
            written.meta = dict(node.meta)
        node.replace_all_uses_with(total)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()


def _simulate_accumulators(module: fx.GraphModule) -> None:
    for layer in list(biased_layers(module)):
        bias = attribute(module, str(layer.bias.target))
        codes, unit = accumulator_bias(bias, layer.weight, layer.input_scale)
        bias.copy_(codes.double() * unit.double())
        call = _only_quantizer(layer.node)
        if call is not None:
            places = 0 if layer.node.target == LINEAR else layer.node.meta["val"].ndim - 2
            accumulator = Accumulator(unit.view(-1, *[1] * places), attribute(module, str(call.target)).scale)
            _add(module, ACCUMULATORS, layer.name, accumulator)
            # Before what is clipped: an end of ReLU6 need be no whole number of the accumulator's units.
            with module.graph.inserting_after(layer.node):
                rounded = module.graph.call_module(f"{ACCUMULATORS}.{layer.name}", (layer.node,))
            rounded.meta = dict(layer.node.meta)
            layer.node.replace_all_uses_with(rounded, delete_user_cb=functools.partial(operator.is_not, rounded))


def _simulate_operations(module: fx.GraphModule) -> None:
    grids = value_grids(module.graph)
    for node in list(module.graph.nodes):
        folder = next((name for name, operation in CODE_OPERATIONS.items() if operation.is_of(node)), None)
        if folder is None:
            continue
        sources, call = CODE_OPERATIONS[folder].sources(node), _only_quantizer(node)
        if call is None or not all(source in grids for source in sources):
            continue
        quantizers = [attribute(module, name) for name in (*(grids[source] for source in sources), str(call.target))]
        scales, zero_points = (
            torch.stack([getattr(quantizer, name).float().reshape(()) for quantizer in quantizers])
            for name in ("scale", "zero_point")
        )
        _add(module, folder, node.name, CODE_OPERATIONS[folder].kind(scales, zero_points))
        with module.graph.inserting_before(node):
            simulated = module.graph.call_module(f"{folder}.{node.name}", sources)
        _put_in_its_place(simulated, node)


def _put_in_its_place(new: fx.Node, old: fx.Node) -> None:
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def _add(module: fx.GraphModule, folder: str, name: str, simulation: nn.Module) -> None:
    owner: nn.Module = module
    for part in folder.split("."):
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner.add_module(name, simulation)


def drop_accumulators(module: fx.GraphModule) -> None:
    """Takes an integer runtime's arithmetic out of a graph, for one whose grids will change or that a runtime runs."""
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        simulation = attribute(module, str(node.target))
        if isinstance(simulation, Accumulator):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif isinstance(simulation, CodeOperation):
            simulated = CODE_OPERATIONS[str(node.target).rpartition(".")[0]]
            with module.graph.inserting_before(node):
                plain = module.graph.call_function(simulated.operator, (*node.args, *simulated.constants))
            _put_in_its_place(plain, node)
    module.recompile()


def _only_quantizer(node: fx.Node) -> fx.Node | None:
    """The call of the quantizer that alone reads a tensor, through clipping activations."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "call_module" and str(node.target).startswith(f"{ACTIVATION_QUANTIZERS}."):
            return node
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
    if node.op != "call_function" or not hands_values_on(node):
        return []
    if operation_name(node) in ("pad", "constant_pad_nd") and any(
        isinstance(value, int | float) and value for value in (*node.args[2:], *node.kwargs.values())
    ):
        return []
    if any(isinstance(value, torch.dtype) and value != torch.float32 for value in (*node.args, *node.kwargs.values())):
        return []
    data = node.args[0]
    return [source for source in (data if isinstance(data, list | tuple) else [data]) if isinstance(source, fx.Node)]
