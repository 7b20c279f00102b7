"""The simulated network rewritten as an integer runtime wants it; the numbers stay the same."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, fx, nn

from causal_dfq.export.operators import requantize, stored
from causal_dfq.network.operations import attribute, clipping_bounds, operation_name
from causal_dfq.quantizer.accumulator import accumulator_bias, biased_layers, drop_accumulators, value_grids
from causal_dfq.quantizer.affine import integer_range, quantize
from causal_dfq.quantizer.modules import FrozenActivationQuantizer, IntegerWeight

ActivationType = Literal["uint8", "int8"]
BIASES = "causal_dfq_biases"
# They look at a tensor and compute nothing.
_LOOKING = frozenset({"sym_size", "sym_numel", "_assert_tensor_metadata"})
# Their result is a list of tensors.
_SPLITTING = frozenset({"chunk", "split", "split_with_sizes", "unbind"})


class Requantize(nn.Module):
    """An activation quantizer in an integer type of 8 bits; narrower codes keep to their own ends.

    Codes of int8 are those of uint8 less 2^(bits - 1). `ends`: the lowest and the highest code, where they are not
    those of the bits.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, quantizer: FrozenActivationQuantizer, kind: ActivationType, ends: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        whole = integer_range(quantizer.bits, is_signed=kind == "int8")
        self.ends = ends or whole
        self.register_buffer("scale", quantizer.scale.detach().reshape(()).clone())
        zero_point = quantizer.zero_point.detach().reshape(()) + whole[0]
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

    A clipping activation becomes a part of the requantization behind it; a tensor that an operation reads comes
    straight from a requantization, moves and concatenations behind it notwithstanding. With uint8 activations a bias
    has the scale of its layer's accumulator; runtimes that want int8 ones take biases in float.
    """
    module = copy.deepcopy(simulated).cpu()
    drop_accumulators(module)
    ends = _absorb_activations(module, kind)
    if kind == "uint8":
        _store_biases(module)
    _round_after_moves(module.graph, value_grids(module.graph))
    for name, quantizer in list(module.named_modules()):
        if isinstance(quantizer, FrozenActivationQuantizer):
            _set(module, name, Requantize(quantizer, kind, ends.get(name)))
        elif isinstance(quantizer, IntegerWeight):
            _set(module, name, Stored(quantizer.codes, quantizer.scale, quantizer.zero_point, quantizer.bits))
    module.recompile()
    return module


def _absorb_activations(module: fx.GraphModule, kind: ActivationType) -> dict[str, tuple[int, int]]:
    """Takes out the clipping activations that requantization makes up for.

    Clipping and rounding may change places: codes are clipped to those of the bounds instead, which costs nothing where
    these are the ends of the grid anyway. Returns the ends of the others, by quantizer.
    """
    ends: dict[str, tuple[int, int]] = {}
    for node in list(module.graph.nodes):
        bounds = clipping_bounds(node)
        quantizers = [_quantizer(module, user) for user in node.users]
        if bounds is None or not quantizers or None in quantizers:
            continue
        codes = {str(user.target): _codes_of(attribute(module, str(user.target)), bounds) for user in node.users}
        narrowed = {name: found for name, found in codes.items() if found != _whole(attribute(module, name))}
        is_free = all(_calls(module.graph, name) == 1 for name in narrowed)
        if not narrowed or (kind == "uint8" and is_free):
            ends |= narrowed
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    return ends


def _codes_of(quantizer: FrozenActivationQuantizer, bounds: tuple[float, float]) -> tuple[int, int]:
    codes = quantize(torch.tensor(bounds), quantizer.scale, quantizer.zero_point, *_whole(quantizer))
    return int(codes[0]), int(codes[1])


def _whole(quantizer: FrozenActivationQuantizer) -> tuple[int, int]:
    return integer_range(quantizer.bits, is_signed=False)


def _calls(graph: fx.Graph, name: str) -> int:
    return sum(node.op == "call_module" and node.target == name for node in graph.nodes)


def _store_biases(module: fx.GraphModule) -> None:
    """Biases in 32 bits, in the units of their layers' accumulators."""
    for layer in list(biased_layers(module)):
        bias = attribute(module, str(layer.bias.target))
        codes, scale = accumulator_bias(bias, layer.weight, layer.input_scale)
        if not hasattr(module, BIASES):
            module.add_module(BIASES, nn.Module())
        attribute(module, BIASES).add_module(layer.name, Stored(codes, scale, torch.zeros_like(codes), 32))
        with module.graph.inserting_before(layer.node):
            call = module.graph.call_module(f"{BIASES}.{layer.name}", ())
        layer.node.update_arg(2, call)
        if not layer.bias.users:
            module.graph.erase_node(layer.bias)


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
