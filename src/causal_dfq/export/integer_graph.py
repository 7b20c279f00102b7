"""The simulated network rewritten as an integer runtime wants it; the numbers stay the same but for rounded biases."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, fx, nn

from causal_dfq.export.operators import requantize, stored
from causal_dfq.network.operations import (
    CONCATENATION,
    WEIGHT_LAYERS,
    attribute,
    clipping_bounds,
    is_value_preserving,
    operation_name,
)
from causal_dfq.quantizer.affine import integer_range, quantize
from causal_dfq.quantizer.modules import FrozenActivationQuantizer, IntegerWeight
from causal_dfq.quantizer.placement import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS

ActivationType = Literal["uint8", "int8"]
BIASES = "causal_dfq_biases"
# The other half of what 32 bits hold is for the products.
_LARGEST_BIAS = 2**30
# They look at a tensor and compute nothing.
_LOOKING = frozenset({"sym_size", "sym_numel", "_assert_tensor_metadata"})
# Their result is a list of tensors.
_SPLITTING = frozenset({"chunk", "split", "split_with_sizes", "unbind"})


class Requantize(nn.Module):
    """An activation quantizer in an integer type of 8 bits; narrower codes keep to their own ends.

    Codes of int8 are those of uint8 less 2^(bits - 1).
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: FrozenActivationQuantizer, kind: ActivationType) -> None:
        super().__init__()
        self.ends = integer_range(quantizer.bits, is_signed=kind == "int8")
        self.register_buffer("scale", quantizer.scale.detach().reshape(()).clone())
        zero_point = quantizer.zero_point.detach().reshape(()) + self.ends[0]
        self.register_buffer("zero_point", zero_point.to(torch.int8 if kind == "int8" else torch.uint8))

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape -> the same, on the grid."""
        result: Tensor = requantize(values, self.scale, self.zero_point, *self.ends)
        return result


class Stored(nn.Module):
    """A constant in integers: codes (O, ...), scales and zero points (O,); `bits` of the codes."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale.flatten().clone())
        self.register_buffer("zero_point", zero_point.flatten().to(codes.dtype))

    def forward(self) -> Tensor:
        """The real values."""
        values: Tensor = stored(self.codes, self.scale, self.zero_point)
        return values


def integer_graph(simulated: fx.GraphModule, kind: ActivationType) -> fx.GraphModule:
    """The graph of a finished network with integer constants, as `torch.onnx.export` is given it.

    A clipping activation whose grid ends where it clips is left out; a tensor that an operation reads comes straight
    from a requantization, moves and concatenations behind it notwithstanding. With uint8 activations a bias has the
    scale of its layer's accumulator; runtimes that want int8 ones take biases in float.
    """
    module = copy.deepcopy(simulated).cpu()
    _drop_absorbed_activations(module)
    grids = _grids(module.graph)
    if kind == "uint8":
        _store_biases(module, grids)
    _round_after_moves(module.graph, grids)
    for name, quantizer in list(module.named_modules()):
        if isinstance(quantizer, FrozenActivationQuantizer):
            _set(module, name, Requantize(quantizer, kind))
        elif isinstance(quantizer, IntegerWeight):
            _set(module, name, Stored(quantizer.codes, quantizer.scale, quantizer.zero_point, quantizer.bits))
    module.recompile()
    return module


def _drop_absorbed_activations(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        bounds = clipping_bounds(node)
        quantizers = [_quantizer(module, user) for user in node.users]
        if bounds is None or not quantizers:
            continue
        if all(quantizer is not None and _spans_no_more(quantizer, bounds) for quantizer in quantizers):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def _spans_no_more(quantizer: FrozenActivationQuantizer, bounds: tuple[float, float]) -> bool:
    """Whether what lies beyond the bounds has the codes of the bounds anyway."""
    ends = integer_range(quantizer.bits, is_signed=False)
    codes = quantize(torch.tensor(bounds), quantizer.scale, quantizer.zero_point, *ends)
    return bool(torch.equal(codes, torch.tensor(ends, dtype=codes.dtype)))


def _grids(graph: fx.Graph) -> dict[fx.Node, str]:
    """The name of the quantizer whose codes a node's values are on, where they are."""
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


def _store_biases(module: fx.GraphModule, grids: dict[fx.Node, str]) -> None:
    """Biases in 32 bits, in units of input scale times weight scale, as an accumulator holds them."""
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in WEIGHT_LAYERS or len(node.args) < 3:
            continue
        source, weight, bias = node.args[:3]
        if not isinstance(bias, fx.Node) or bias.op != "get_attr" or not isinstance(source, fx.Node):
            continue
        if source not in grids or not isinstance(weight, fx.Node) or weight.op != "call_module":
            continue
        quantizer, name = (
            attribute(module, str(weight.target)),
            str(weight.target).removeprefix(WEIGHT_QUANTIZERS + "."),
        )
        constant = _stored_bias(attribute(module, str(bias.target)), quantizer, attribute(module, grids[source]).scale)
        if not hasattr(module, BIASES):
            module.add_module(BIASES, nn.Module())
        attribute(module, BIASES).add_module(name, constant)
        with module.graph.inserting_before(node):
            call = module.graph.call_module(f"{BIASES}.{name}", ())
        node.update_arg(2, call)
        if not bias.users:
            module.graph.erase_node(bias)


def _stored_bias(bias: Tensor, weight: IntegerWeight, input_scale: Tensor) -> Stored:
    """A bias in the accumulator's units.

    A channel whose weights are so small that its bias would overflow takes the scale that the bias needs, for both:
    its weights, which say nothing beside it, are rounded again.
    """
    needed = (bias.abs() / (_LARGEST_BIAS * input_scale)).view_as(weight.scale)
    if bool((needed > weight.scale).any()):
        real = weight()
        weight.scale.copy_(torch.maximum(weight.scale, needed))
        ends = integer_range(weight.bits, is_signed=True)
        weight.codes.copy_(quantize(real, weight.scale, weight.zero_point.float(), *ends))
    scale = input_scale * weight.scale.flatten()
    codes = torch.round(bias.double() / scale.double())
    return Stored(codes.to(torch.int32), scale, torch.zeros_like(codes), 32)


def _round_after_moves(graph: fx.Graph, grids: dict[fx.Node, str]) -> None:
    """Behind moves and concatenations the values are rounded once more, to the codes that they have already.

    A runtime looks for the requantization right before an operation.
    """
    for node in list(graph.nodes):
        is_moved = node in grids and node.op == "call_function" and operation_name(node) not in _SPLITTING
        readers = [
            user
            for user in node.users
            if user not in grids and user.op == "call_function" and operation_name(user) not in _LOOKING
        ]
        if is_moved and readers:
            with graph.inserting_after(node):
                call = graph.call_module(grids[node], (node,))
            for reader in readers:
                reader.replace_input_with(node, call)


def _quantizer(module: fx.GraphModule, node: fx.Node) -> FrozenActivationQuantizer | None:
    found = attribute(module, str(node.target)) if node.op == "call_module" else None
    return found if isinstance(found, FrozenActivationQuantizer) else None


def _set(module: nn.Module, name: str, value: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    module.get_submodule(owner).add_module(last, value)
