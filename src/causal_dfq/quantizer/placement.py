"""Which tensors are quantized: one rule a protocol, and the graph rewritten by it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, fx, nn

from causal_dfq.config import FLOAT_BITS, BitWidths, Protocol
from causal_dfq.network.operations import (
    ACTIVATIONS,
    CLIPPING_ACTIVATIONS,
    CONCATENATION,
    attribute,
    hands_values_on,
    has_float_value,
    has_several_results,
    input_name,
    is_function,
    is_value_preserving,
    is_weight_layer,
    weight_layer_nodes,
)
from causal_dfq.quantizer.float_readers import float_readers
from causal_dfq.quantizer.modules import ActivationQuantizer, WeightQuantizer

ACTIVATION_QUANTIZERS = "activation_quantizers"
WEIGHT_QUANTIZERS = "weight_quantizers"
IMAGE_BITS = 8


@dataclass(frozen=True)
class PlacementRule:
    """What a protocol quantizes.

    `tensors` lists the nodes whose values are quantized, `float_readers` those of which some readers take the values in
    float, and these readers. `edge_bits`: width of the first and last layer's weights and of the last layer's input,
    None for the width of all the others.
    """

    tensors: Callable[[fx.Graph], list[fx.Node]]
    float_readers: Callable[[fx.Graph], dict[fx.Node, set[fx.Node]]]
    edge_bits: int | None
    weights_symmetric: bool


def integer_tensors(graph: fx.Graph) -> list[fx.Node]:
    """Every tensor that an integer runtime reads: the input image, and what each operation writes.

    A clipping activation (ReLU, ReLU6) is part of the operation before it, and functions of one value that follow each
    other, such as the square, factor and offset of a StarReLU, are one. Logits stay in the accumulator's precision.
    [ours]
    """
    return [
        node
        for node in graph.nodes
        if _is_computed(node)
        and not _is_fused_into_clipping(node)
        and not _is_within_function(node)
        and _is_read_by_operation(node)
    ]


def post_activation_tensors(graph: fx.Graph) -> list[fx.Node]:
    """The outputs of the activation functions, as GDFQ and its successors quantize."""
    return [node for node in graph.nodes if node.op == "call_function" and node.target in ACTIVATIONS]


def layer_input_tensors(graph: fx.Graph) -> list[fx.Node]:
    """The tensors that convolutions and linear layers read, as BRECQ, QDrop and GENIE quantize."""
    sources = {source for layer in weight_layer_nodes(graph) for source in _sources(layer.args[0])}
    return [node for node in graph.nodes if node in sources]


def _none(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    return {}


RULES: dict[Protocol, PlacementRule] = {
    "deploy": PlacementRule(integer_tensors, float_readers, edge_bits=None, weights_symmetric=True),
    "gdfq": PlacementRule(post_activation_tensors, _none, edge_bits=None, weights_symmetric=False),
    "genie": PlacementRule(layer_input_tensors, _none, edge_bits=8, weights_symmetric=True),
}


def place_quantizers(module: fx.GraphModule, bits: BitWidths, protocol: Protocol) -> fx.GraphModule:
    """A copy of a folded graph with quantizers on weights and activations; parameters are copies.

    Weight scales are set; activation quantizers await `calibrate`.
    """
    rule = RULES[protocol]
    module = copy.deepcopy(module)
    if bits.activation < FLOAT_BITS:
        _place_activation_quantizers(module, rule, bits.activation)
    if bits.weight < FLOAT_BITS:
        _place_weight_quantizers(module, rule, bits.weight)
    return fx.GraphModule(module, module.graph)


def quantized_tensors(module: fx.GraphModule) -> dict[str, list[str]]:
    """Activation quantizer -> names of the nodes whose values it rounds."""
    found: dict[str, list[str]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith(ACTIVATION_QUANTIZERS + "."):
            found.setdefault(str(node.target), []).append(input_name(node))
    return found


def _is_computed(node: fx.Node) -> bool:
    if node.op == "placeholder":
        return True
    is_call = node.op == "call_function" and has_float_value(node) and not has_several_results(node)
    return is_call and not is_value_preserving(node) and node.target != CONCATENATION


def _is_fused_into_clipping(node: fx.Node) -> bool:
    if node.op == "placeholder" or node.target in CLIPPING_ACTIVATIONS or len(node.users) != 1:
        return False
    user = next(iter(node.users))
    return user.op == "call_function" and user.target in CLIPPING_ACTIVATIONS


def _is_within_function(node: fx.Node) -> bool:
    return is_function(node) and len(node.users) == 1 and all(map(is_function, node.users))


def _is_read_by_operation(node: fx.Node) -> bool:
    for user in node.users:
        if (
            _is_read_by_operation(user)
            if hands_values_on(user)
            else user.op == "call_function" and has_float_value(user)
        ):
            return True
    return False


def _sources(node: object) -> Iterable[fx.Node]:
    """The computed tensors whose values a node holds, seen through moves and concatenations."""
    if not isinstance(node, fx.Node):
        return
    if _is_computed(node):
        yield node
    elif hands_values_on(node):
        moved = node.args[0]
        for argument in moved if isinstance(moved, list | tuple) else [moved]:
            yield from _sources(argument)


def _shared_grids(graph: fx.Graph, tensors: list[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Tensor -> the representative of its grid: tensors that are concatenated share one."""
    leader = {node: node for node in tensors}

    def find(node: fx.Node) -> fx.Node:
        while leader[node] is not node:
            node = leader[node]
        return node

    for node in graph.nodes:
        if node.op == "call_function" and node.target == CONCATENATION:
            members = [source for source in _sources(node) if source in leader]
            for member in members[1:]:
                leader[find(member)] = find(members[0])
    return {node: find(node) for node in tensors}


def _place_activation_quantizers(module: fx.GraphModule, rule: PlacementRule, bits: int) -> None:
    in_float = rule.float_readers(module.graph)
    tensors = [node for node in rule.tensors(module.graph) if in_float.get(node) != set(node.users)]
    grids = _shared_grids(module.graph, tensors)
    last_inputs: set[fx.Node] = set()
    if rule.edge_bits is not None:
        last_inputs = set(_sources(weight_layer_nodes(module.graph)[-1].args[0]))
    quantizers = nn.Module()
    module.add_module(ACTIVATION_QUANTIZERS, quantizers)
    widths: dict[str, int] = {}
    for node in tensors:
        width = max(bits, IMAGE_BITS) if node.op == "placeholder" else bits
        if node in last_inputs and rule.edge_bits is not None:
            width = max(bits, rule.edge_bits)
        # What shares a grid shares the widest one.
        widths[grids[node].name] = max(width, widths.get(grids[node].name, 0))
    for name, width in widths.items():
        quantizers.add_module(name, ActivationQuantizer(width))
    for node in tensors:
        name = grids[node].name
        with module.graph.inserting_after(node):
            call = module.graph.call_module(f"{ACTIVATION_QUANTIZERS}.{name}", (node,))
        call.meta["val"] = node.meta["val"]
        for user in list(node.users):
            if user is not call and user not in in_float.get(node, ()):
                user.replace_input_with(node, call)


def _place_weight_quantizers(module: fx.GraphModule, rule: PlacementRule, bits: int) -> None:
    layers = weight_layer_nodes(module.graph)
    quantizers = nn.Module()
    module.add_module(WEIGHT_QUANTIZERS, quantizers)
    for layer in layers:
        is_edge = layer in (layers[0], layers[-1])
        width = max(bits, rule.edge_bits) if is_edge and rule.edge_bits is not None else bits
        stored = layer.args[1]
        assert isinstance(stored, fx.Node)
        weight: Tensor = attribute(module, str(stored.target))
        quantizers.add_module(layer.name, WeightQuantizer(weight, width, rule.weights_symmetric))
        with module.graph.inserting_before(layer):
            call = module.graph.call_module(f"{WEIGHT_QUANTIZERS}.{layer.name}", (stored,))
        assert is_weight_layer(layer)
        layer.replace_input_with(stored, call)
