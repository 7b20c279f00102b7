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
    aten,
    attribute,
    has_float_value,
    input_name,
    is_value_preserving,
    is_weight_layer,
    operation_name,
    weight_layer_nodes,
)
from causal_dfq.quantizer.modules import ActivationQuantizer, WeightQuantizer

ACTIVATION_QUANTIZERS = "activation_quantizers"
WEIGHT_QUANTIZERS = "weight_quantizers"
IMAGE_BITS = 8
# Runtimes compute them in float, whatever they are given.
_FEATURE_NORMS = frozenset(
    {aten.layer_norm.default, aten.native_layer_norm.default, aten.group_norm.default, aten.rms_norm.default}
)
_STREAM_OPERATIONS = frozenset({aten.add.Tensor, aten.mul.Tensor})
_RECIPROCALS = frozenset({"reciprocal", "rsqrt"})
_FUNCTIONS = frozenset(
    {
        *("add", "sub", "rsub", "mul", "div", "neg", "abs", "pow", "square", "sqrt", "rsqrt", "reciprocal", "exp"),
        *("log", "erf", "tanh", "sigmoid", "silu", "gelu", "hardswish", "hardsigmoid", "mish", "elu", "softplus"),
        "leaky_relu",
    }
)


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


def float_readers(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Tensors with readers that compute in float on every runtime and would only lose by codes, and these readers.

    First, the stream of a transformer, and of a network such as ConvNeXt: each block normalizes it and adds to it. No
    runtime normalizes codes, and every block would round the stream once more. A sum that a normalization of features
    reads, and what is only added to one, is float for the normalization and for the next sum; a layer reads its codes.
    Second, what something is divided by, which as a code could be zero. [ours]
    """
    readers = {node: {user for user in node.users if _is_divided_by(user, node)} for node in graph.nodes}
    streams: set[fx.Node] = set()

    def takes_stream(reader: fx.Node) -> bool:
        if reader.target in _FEATURE_NORMS or reader in streams:
            return True
        return _passes(reader) and bool(reader.users) and all(map(takes_stream, reader.users))

    for node in reversed(graph.nodes):
        if node.op == "call_function" and node.target in _STREAM_OPERATIONS and has_float_value(node):
            found = readers[node] | {reader for reader in node.users if takes_stream(reader)}
            if any(map(_is_normalized, node.users)) or (found and len(found) == len(node.users)):
                streams.add(node)
                readers[node] = found
    return {node: found for node, found in readers.items() if found}


def _is_normalized(reader: fx.Node) -> bool:
    return reader.target in _FEATURE_NORMS or (_passes(reader) and any(map(_is_normalized, reader.users)))


def _is_divided_by(reader: fx.Node, node: fx.Node) -> bool:
    if reader.target == aten.div.Tensor:
        return reader.args[1] is node and reader.args[0] is not node
    if operation_name(reader) in _RECIPROCALS:
        return True
    if not (_passes(reader) or _is_function(reader)) or not reader.users:
        return False
    return all(_is_divided_by(user, reader) for user in reader.users)


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
    is_call = node.op == "call_function" and has_float_value(node)
    return is_call and not is_value_preserving(node) and node.target != CONCATENATION


def _is_fused_into_clipping(node: fx.Node) -> bool:
    if node.op == "placeholder" or node.target in CLIPPING_ACTIVATIONS or len(node.users) != 1:
        return False
    user = next(iter(node.users))
    return user.op == "call_function" and user.target in CLIPPING_ACTIVATIONS


def _is_within_function(node: fx.Node) -> bool:
    return _is_function(node) and len(node.users) == 1 and all(map(_is_function, node.users))


def _is_function(node: fx.Node) -> bool:
    """Whether each value of the result is one of a single tensor's, and constants."""
    variables = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return operation_name(node) in _FUNCTIONS and len(variables) == 1 and node.args.count(variables[0]) == 1


def _is_read_by_operation(node: fx.Node) -> bool:
    for user in node.users:
        if _is_read_by_operation(user) if _passes(user) else user.op == "call_function" and has_float_value(user):
            return True
    return False


def _passes(node: fx.Node) -> bool:
    """Whether the node hands values on as they are."""
    return is_value_preserving(node) or (node.op == "call_function" and node.target == CONCATENATION)


def _sources(node: object) -> Iterable[fx.Node]:
    """The computed tensors whose values a node holds, seen through moves and concatenations."""
    if not isinstance(node, fx.Node):
        return
    if _is_computed(node):
        yield node
    elif _passes(node):
        for argument in node.all_input_nodes:
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
    for node in tensors:
        name = grids[node].name
        if not hasattr(quantizers, name):
            width = max(bits, IMAGE_BITS) if node.op == "placeholder" else bits
            if node in last_inputs and rule.edge_bits is not None:
                width = max(bits, rule.edge_bits)
            quantizers.add_module(name, ActivationQuantizer(width))
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
