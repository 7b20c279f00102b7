"""Who reads a tensor in float: operations that no runtime computes on codes, and that would only lose by them."""

from __future__ import annotations

from torch import fx

from causal_dfq.network.operations import (
    CLIPPING_ACTIVATIONS,
    aten,
    hands_values_on,
    has_float_value,
    is_function,
    is_value_preserving,
    is_weight_layer,
    operation_name,
)

_FEATURE_NORMS = frozenset(
    {aten.layer_norm.default, aten.native_layer_norm.default, aten.group_norm.default, aten.rms_norm.default}
)
_STREAM_OPERATIONS = frozenset({aten.add.Tensor, aten.mul.Tensor})
_SOFTMAXES = frozenset({aten.softmax.int, aten._softmax.default, aten.log_softmax.int})
# Of these a code of zero makes no zero.
_NEVER_ZERO = frozenset({"exp", "sigmoid", "hardsigmoid", "softplus"})


def float_readers(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Tensors that some of their readers take in float, and these readers.

    First, the stream of a transformer, and of a network such as ConvNeXt: each block normalizes it, or what a layer
    makes of it, or what it adds to it. No runtime normalizes codes, and every block would round the stream once more. A
    sum that a normalization of features reads or has written a part of, what is only added to one, and the sums before
    it in the stream are float for the normalization and for the next sum; a layer reads their codes. Second, what
    something is divided by, which as a code could be zero. Third, what a softmax reads: a mask among the scores of an
    attention would take all codes for itself. Layers write codes always: a runtime computes a convolution in integers
    only between codes. [ours]
    """
    found: dict[fx.Node, set[fx.Node]] = {}
    normalized: set[fx.Node] = set()
    streams: set[fx.Node] = set()
    kept: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        in_float = {user for user in node.users if _needs_float(user, node, kept)}
        if in_float and len(in_float) == len(node.users):
            kept.add(node)
        if any(user.target in _FEATURE_NORMS or (hands_values_on(user) and user in normalized) for user in node.users):
            normalized.add(node)
        taking = {user for user in node.users if user.target in _FEATURE_NORMS or user in streams}
        is_taken = bool(taking) and len(taking) == len(node.users)
        if hands_values_on(node):
            if is_taken:
                streams.add(node)
            continue
        is_stream = is_taken or node in normalized or _is_summed_on(node, streams) or _adds_norm(node)
        if node.target in _STREAM_OPERATIONS and has_float_value(node) and is_stream:
            streams.add(node)
            in_float |= taking
        elif node.target in _FEATURE_NORMS:
            in_float |= taking
        if in_float and not _is_layer(node):
            found[node] = in_float
    return found


def _is_summed_on(node: fx.Node, streams: set[fx.Node]) -> bool:
    return node.target == aten.add.Tensor and any(
        user in streams and user.target == aten.add.Tensor for user in node.users
    )


def _adds_norm(node: fx.Node) -> bool:
    """Whether a sum adds what a normalization of features writes, as where blocks are normalized at their end."""
    summands = [source for source in node.all_input_nodes if node.target == aten.add.Tensor]
    return any(map(_is_norm_moved, summands))


def _is_norm_moved(node: fx.Node) -> bool:
    while is_value_preserving(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.target in _FEATURE_NORMS


def _needs_float(reader: fx.Node, node: fx.Node, kept: set[fx.Node]) -> bool:
    """Whether a reader is a softmax or divides by the tensor, or makes of it what is read so alone."""
    if reader.target in _SOFTMAXES:
        return True
    if reader.target == aten.div.Tensor and node in reader.args[1:]:
        return reader.args[0] is not node
    name = operation_name(reader)
    exponent = reader.args[1] if name == "pow" else 1
    if name in ("reciprocal", "rsqrt") or (isinstance(exponent, int | float) and exponent < 0):
        return True
    passes = hands_values_on(reader) or reader.target in CLIPPING_ACTIVATIONS
    passes = passes or (is_function(reader) and name not in _NEVER_ZERO)
    return passes and reader in kept


def _is_layer(node: fx.Node) -> bool:
    """Whether a tensor is a layer's result, or what a clipping activation makes of it."""
    while node.op == "call_function" and node.target in CLIPPING_ACTIVATIONS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return is_weight_layer(node)
