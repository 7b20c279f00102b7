"""Q's activations as training runs them: clipped, compared with P's, and rounded in one pass over memory. [ours]

A ReLU, the feature loss and fake quantization each read and write every activation several times, forward
and back. `measured_fake_quantize` is all three; with a compiler each way is one pass.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from causal_dfq.fusion import Formula, constant, from_memory_order, in_memory_order, is_fusing, like_in_memory
from causal_dfq.network.operations import UNCLIPPED, clip, clipping_bounds
from causal_dfq.quantizer.affine import integer_range, learned_fake_quantize
from causal_dfq.quantizer.modules import ActivationQuantizer
from causal_dfq.quantizer.placement import ACTIVATION_QUANTIZERS
from causal_dfq.training.feature_error import SMALLEST_SIZE, relative_error

_MEASURED = "measured_quantizers"


@Formula
def _round_and_measure(
    values: Tensor,
    target: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    low: Tensor,
    high: Tensor,
    lowest: int,
    highest: int,
) -> tuple[Tensor, Tensor, Tensor]:
    feature, exact = torch.clamp(values.float(), low, high), target.float()
    offset = torch.round(zero_point)
    codes = torch.clamp(torch.round(feature / scale), lowest - offset, highest - offset)
    difference = feature - exact
    return (codes * scale).to(values.dtype), (difference * difference).sum(), (exact * exact).sum()


@Formula
def _gradients(
    gradient: Tensor,
    values: Tensor,
    target: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    low: Tensor,
    high: Tensor,
    slope: Tensor,
    lowest: int,
    highest: int,
) -> tuple[Tensor, Tensor, Tensor]:
    unclipped = values.float()
    feature = torch.clamp(unclipped, low, high)
    offset = torch.round(zero_point)
    exact = feature / scale
    rounded = torch.round(exact)
    codes = torch.clamp(rounded, lowest - offset, highest - offset)
    incoming = gradient.float()
    passed = torch.where(codes == rounded, incoming, 0.0)
    both = passed + slope * (feature - target.float())
    to_values = torch.where((unclipped > low) & (unclipped < high), both, 0.0)
    to_scale = (incoming * codes - passed * exact).sum()
    return to_values.to(values.dtype), to_scale, -scale * (incoming - passed).sum()


class _MeasuredFakeQuantize(torch.autograd.Function):
    """Gives the rounded values, the squared distance of the clipped ones from the target, and the target's square."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        target: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bounds: tuple[Tensor, Tensor],
        codes: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        target = like_in_memory(target, values)
        ctx.save_for_backward(values, target, scale, zero_point)
        ctx.bounds, ctx.codes = bounds, codes
        rounded, distance, size = _round_and_measure(_flat(values), _flat(target), scale, zero_point, *bounds, *codes)
        ctx.mark_non_differentiable(size)
        return from_memory_order(rounded, values), distance, size

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, target, scale, zero_point = ctx.saved_tensors
        gradient = like_in_memory(gradients[0], values)
        to_values, to_scale, to_zero_point = _gradients(
            _flat(gradient),
            _flat(values),
            _flat(target),
            scale,
            zero_point,
            *ctx.bounds,
            2 * gradients[1],
            *ctx.codes,
        )
        needs_zero_point = ctx.needs_input_grad[3]
        return (
            from_memory_order(to_values, values),
            None,
            to_scale,
            to_zero_point if needs_zero_point else None,
            None,
            None,
        )


def _flat(values: Tensor) -> Tensor:
    return in_memory_order(values).reshape(-1)


def measured_fake_quantize(
    values: Tensor,
    target: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bounds: tuple[float, float],
    codes: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Clips values to `bounds`, rounds them to the grid, and compares them with a target before the rounding.

    Args:
        values: of any shape.
        target: of the same shape; constant.
        scale, zero_point: scalars of the grid.
        bounds: -inf and inf where nothing is clipped.
        codes: the smallest and the largest code.

    Returns:
        The rounded values, and |clipped - target|^2 / |target|^2. The gradients are those of
        `learned_fake_quantize` and of `relative_error`, through the clipping.
    """
    if not is_fusing():
        feature = clip(values, bounds)
        return learned_fake_quantize(feature, scale, zero_point, *codes), relative_error(feature, target)
    ends = constant(bounds[0], values.device), constant(bounds[1], values.device)
    rounded, distance, size = _MeasuredFakeQuantize.apply(values, target, scale, zero_point, ends, codes)
    return rounded, distance / size.clamp_min(SMALLEST_SIZE)


class MeasuredQuantizer(nn.Module):
    """An activation quantizer behind a clipping activation, measured against a target; shares the quantizer's grid."""

    def __init__(self, quantizer: ActivationQuantizer, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.quantizer, self.bounds = quantizer, bounds

    def forward(self, values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Values and target of one shape -> the rounded values, their relative error before the rounding."""
        codes = integer_range(self.quantizer.bits, is_signed=False)
        return measured_fake_quantize(
            values, target, self.quantizer.scale, self.quantizer.zero_point, self.bounds, codes
        )


def with_feature_errors(quantized: fx.GraphModule, features: list[str], seen: list[str]) -> fx.GraphModule:
    """A view of Q: images and a target for each named feature -> (logits, [error of each], [value of each in `seen`]).

    Parameters and quantizers are shared with `quantized`.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    logits = graph.graph_copy(quantized.graph, copies)
    by_name = {original.name: copy for original, copy in copies.items()}
    values = [by_name[name] for name in seen]
    view = fx.GraphModule(quantized, graph)
    view.add_module(_MEASURED, nn.Module())
    last_input = next(node for node in graph.nodes if node.op == "placeholder")
    errors = []
    for name in features:
        node = by_name[name]
        with graph.inserting_after(last_input):
            last_input = target = graph.placeholder(f"{name}_target")
        call = rounding_of(node)
        if call is node:
            with graph.inserting_after(node):
                errors.append(graph.call_function(relative_error, (node, target)))
            continue
        measured = _measured(view, graph, node, call, target)
        values = [measured[0] if value is call else value for value in values]
        errors.append(measured[1])
    graph.output((logits, errors, values))
    graph.eliminate_dead_code()
    view.graph = graph
    view.delete_all_unused_submodules()
    view.recompile()
    view.train(quantized.training)
    return view


def rounding_of(node: fx.Node) -> fx.Node:
    """The call of the quantizer that reads a node; the node itself where none does."""
    return next((user for user in node.users if _is_quantizer(user)), node)


def _measured(
    view: fx.GraphModule, graph: fx.Graph, node: fx.Node, call: fx.Node, target: fx.Node
) -> tuple[fx.Node, fx.Node]:
    """Puts a `MeasuredQuantizer` in the place of a call; the nodes of its rounded values and of its error."""
    bounds = clipping_bounds(node)
    source = node if bounds is None else node.args[0]
    quantizer = view.get_submodule(str(call.target))
    assert isinstance(quantizer, ActivationQuantizer)
    view.get_submodule(_MEASURED).add_module(node.name, MeasuredQuantizer(quantizer, bounds or UNCLIPPED))
    with graph.inserting_after(call):
        both = graph.call_module(f"{_MEASURED}.{node.name}", (source, target))
    with graph.inserting_after(both):
        error = graph.call_function(operator.getitem, (both, 1))
        rounded = graph.call_function(operator.getitem, (both, 0))
    rounded.meta = dict(call.meta)
    call.replace_all_uses_with(rounded)
    graph.erase_node(call)
    return rounded, error


def _is_quantizer(node: fx.Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith(ACTIVATION_QUANTIZERS + ".")
