"""Which tensor operations a captured graph can hold, by what they mean for quantization."""

from __future__ import annotations

import keyword
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

VOLUME_CONVOLUTIONS = frozenset({aten.conv3d.default, aten.conv3d.padding})
CONVOLUTIONS = VOLUME_CONVOLUTIONS | {
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
}
LINEAR = aten.linear.default
WEIGHT_LAYERS = CONVOLUTIONS | {LINEAR}
# What torch's decompositions leave of them.
DECOMPOSED_LAYERS = frozenset({aten.convolution.default, aten.addmm.default})
BATCH_NORM = aten.batch_norm.default
CONCATENATION = aten.cat.default

# A runtime clips inside the layer before: nothing is rounded between the two.
CLIPPING_ACTIVATIONS = frozenset(
    {aten.relu.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default, aten.relu6.default}
)
UNCLIPPED = (-math.inf, math.inf)
ACTIVATIONS = CLIPPING_ACTIVATIONS | {
    aten.hardswish.default,
    aten.silu.default,
    aten.gelu.default,
    aten.leaky_relu.default,
    aten.elu.default,
    aten.prelu.default,
    aten.mish.default,
    aten.selu.default,
    aten.celu.default,
    aten.softplus.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.hardsigmoid.default,
}
FUNCTION_NAMES = frozenset(
    {
        *("add", "sub", "rsub", "mul", "div", "neg", "abs", "pow", "square", "sqrt", "rsqrt", "reciprocal", "exp"),
        *("log", "erf", "tanh", "sigmoid", "silu", "gelu", "hardswish", "hardsigmoid", "mish", "elu", "softplus"),
        *("leaky_relu", "maximum", "minimum"),
    }
)
# The values of the result are values of the first argument, or zeros.
VALUE_PRESERVING_NAMES = frozenset(
    {
        *(
            "reshape",
            "view",
            "flatten",
            "unflatten",
            "squeeze",
            "unsqueeze",
            "expand",
            "expand_as",
            "clone",
            "detach",
            "alias",
        ),
        *("to", "_to_copy"),
        *("permute", "transpose", "t", "numpy_T", "contiguous", "channel_shuffle", "pixel_shuffle", "roll", "flip"),
        *("slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unbind"),
        *("pad", "constant_pad_nd", "max_pool1d", "max_pool2d", "adaptive_max_pool2d", "upsample_nearest2d"),
    }
)
TRANSPOSED_CONVOLUTION_NAMES = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_PRODUCT_NAMES = frozenset(
    {"matmul", "mm", "bmm", "mv", "einsum", "tensordot", "bilinear", "lstm", "gru", "rnn_tanh", "rnn_relu"}
)
# What they add comes first.
_SUM_OF_PRODUCTS_NAMES = frozenset({"addmm", "baddbmm", "addbmm", "addmv"})

# Largest and smallest values, beside their places.
_SELECTIONS = frozenset(
    {aten.max.dim, aten.min.dim, aten.topk.default, aten.sort.default, aten.max_pool2d_with_indices.default}
)
# They read and write files of any name.
_FILE_OPERATIONS = frozenset({"from_file", "save"})


def aten_overload(packet: str, overload: str) -> torch._ops.OpOverload:
    """The ATen operation of that name, for graphs from files: aten_overload("conv2d", "default").

    Raises:
        ValueError: there is none, or it opens files.
    """
    operation = getattr(getattr(aten, packet, None), overload, None)
    if not isinstance(operation, torch._ops.OpOverload) or packet in _FILE_OPERATIONS:
        raise ValueError(f"aten.{packet}.{overload} is no operation on tensors")
    return operation


def is_identifier(name: object) -> bool:
    """Whether a name from a file can stand in Python source, which torch makes out of a graph."""
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def operation_name(node: fx.Node) -> str:
    """The short name of a call: "conv2d", "add", "getitem"; "" for other nodes."""
    if node.op != "call_function":
        return ""
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet or node.target, "__name__", ""))


def is_weight_layer(node: fx.Node) -> bool:
    """Whether the node is a convolution or a linear layer."""
    return node.op == "call_function" and node.target in WEIGHT_LAYERS


def clipping_bounds(node: fx.Node) -> tuple[float, float] | None:
    """Between which values a clipping activation passes; None for other nodes, and where the bounds are tensors."""
    if node.op != "call_function" or node.target not in CLIPPING_ACTIVATIONS or node.kwargs:
        return None
    if node.target == aten.relu.default:
        return 0.0, math.inf
    if node.target == aten.relu6.default:
        return 0.0, 6.0
    unset: list[object] = [-1.0, 1.0] if node.target == aten.hardtanh.default else [None, None]
    given: list[object] = list(node.args[1:])
    low, high = given + unset[len(given) :]
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if isinstance(low, int | float) and isinstance(high, int | float):
        return float(low), float(high)
    return None


def clip(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Values of any shape between the bounds that `clipping_bounds` gives, or `UNCLIPPED`."""
    return values if bounds == UNCLIPPED else torch.nn.functional.hardtanh(values, *bounds)


def is_value_preserving(node: fx.Node) -> bool:
    """Whether the node only moves, drops or repeats values; of several results, the first does."""
    if node.op == "call_function" and node.target == operator.getitem and isinstance(node.args[0], fx.Node):
        gives_places = node.args[0].target in _SELECTIONS or operation_name(node.args[0]) == "adaptive_max_pool2d"
        return is_value_preserving(node.args[0]) and not (gives_places and node.args[1] != 0)
    return operation_name(node) in VALUE_PRESERVING_NAMES or node.target in _SELECTIONS


def hands_values_on(node: fx.Node) -> bool:
    """Whether the node only moves values, or concatenates them."""
    return is_value_preserving(node) or (node.op == "call_function" and node.target == CONCATENATION)


def is_function(node: fx.Node) -> bool:
    """Whether each value of the result is a function of one value of a single tensor, and of constants."""
    variables = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return operation_name(node) in FUNCTION_NAMES and len(variables) == 1 and node.args.count(variables[0]) == 1


def has_float_value(node: fx.Node) -> bool:
    """Whether the node's result is a floating-point tensor, or some of its results are."""
    values = node.meta.get("val")
    return any(
        isinstance(value, Tensor) and value.is_floating_point()
        for value in (values if isinstance(values, list | tuple) else [values])
    )


def has_several_results(node: fx.Node) -> bool:
    """Whether the node gives a list or tuple, whose items other nodes take."""
    return isinstance(node.meta.get("val"), list | tuple)


def attribute(module: torch.nn.Module, target: str) -> Any:
    """The parameter, buffer or submodule of a dotted name."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def batch_norm_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The BatchNorm calls with running statistics, in order; others take those of the batch."""
    return [node for node in graph.nodes if has_running_statistics(node)]


def has_running_statistics(node: fx.Node) -> bool:
    """Whether the node is a BatchNorm whose running mean and variance are the network's own."""
    if node.op != "call_function" or node.target != BATCH_NORM:
        return False
    return all(isinstance(source, fx.Node) and source.op == "get_attr" for source in node.args[3:5])


def weight_layer_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The convolutions and linear layers, in order."""
    return [node for node in graph.nodes if is_weight_layer(node)]


def unrounded_layers(graph: fx.Graph) -> list[fx.Node]:
    """What multiplies by weights but is none of the layers whose weights are rounded, in order."""
    return [node for node in graph.nodes if node.op == "call_function" and _multiplies_by_parameter(node)]


def _multiplies_by_parameter(node: fx.Node) -> bool:
    if operation_name(node) in TRANSPOSED_CONVOLUTION_NAMES:
        return True
    factors = node.args[1:] if operation_name(node) in _SUM_OF_PRODUCTS_NAMES else node.args
    listed = [entry for value in factors for entry in (value if isinstance(value, list | tuple) else [value])]
    return operation_name(node) in _PRODUCT_NAMES | _SUM_OF_PRODUCTS_NAMES and any(map(_is_parameter, listed))


def _is_parameter(value: object) -> bool:
    while isinstance(value, fx.Node) and is_value_preserving(value):
        value = value.args[0]
    return isinstance(value, fx.Node) and value.op == "get_attr"


def class_count(module: fx.GraphModule) -> int:
    """K of a captured classifier: images -> logits (N, K)."""
    logits = next(node for node in module.graph.nodes if node.op == "output").args[0]
    return int(logits.meta["val"].shape[1])


def input_name(node: fx.Node) -> str:
    """The name of the node that an operation reads first."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source.name


def module_path(node: fx.Node) -> str:
    """Where in the user's network the node comes from: "layer1.0.conv1"."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return str(paths[-1]) if paths and paths[-1] else node.name


def with_outputs(module: fx.GraphModule, names: list[str]) -> fx.GraphModule:
    """A view of the graph that returns (logits, [value of each named node]); parameters are shared."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    logits = graph.graph_copy(module.graph, copies)
    by_name = {original.name: copy for original, copy in copies.items()}
    graph.output((logits, [by_name[name] for name in names]))
    view = fx.GraphModule(module, graph)
    view.train(module.training)
    return view
