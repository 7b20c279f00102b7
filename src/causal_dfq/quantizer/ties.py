"""Grids on which no runtime can round a function of codes another way than the simulation.

A function of a tensor of codes has as many results as there are codes. One that lies so near to the middle between two
codes of the next grid that float32 cannot tell the side is rounded up by one runtime and down by another, at every
place where its code stands, and the layers behind enlarge what differs. The grid is stretched until none does [ours].
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from causal_dfq.network.operations import attribute, clipping_bounds, is_function
from causal_dfq.quantizer.accumulator import value_grids
from causal_dfq.quantizer.affine import integer_range
from causal_dfq.quantizer.modules import FrozenActivationQuantizer
from causal_dfq.quantizer.placement import ACTIVATION_QUANTIZERS

# In steps of the result's grid: more than float32, and a runtime's approximation of the function, should err by.
LEAST_DISTANCE = 1e-3
# Of the largest code a stretch of this moves the position by a fortieth of a step.
_STRETCH = 1e-4
_MOST_STRETCHES = 50


@torch.no_grad()
def avoid_ties(module: fx.GraphModule) -> None:
    """Stretches the grids of a finished graph's functions of codes by at most 0.5 %, in place.

    Grids that several tensors share, and those of equal steps, stay as they are; so do those of functions with
    constants of their own in tensors. Source: [ours].
    """
    grids = value_grids(module.graph)
    calls = [node for node in module.graph.nodes if _is_quantization(node)]
    targets = [str(call.target) for call in calls]
    scales = [float(attribute(module, target).scale) for target in targets]
    for call, target, scale in zip(calls, targets, scales, strict=True):
        if targets.count(target) > 1 or scales.count(scale) > 1:
            continue
        chain = _functions_before(call, grids)
        if chain:
            of_codes, of_result = attribute(module, grids[_source(chain[0])]), attribute(module, target)
            of_result.scale.copy_(_without_ties(_results(chain, of_codes), of_result))


def distance_to_tie(results: Tensor, scale: Tensor, zero_point: Tensor, largest: int) -> float:
    """The smallest distance of results (n,) from the middle between two codes 0 to `largest`, in steps."""
    positions = (results.double() / scale.double() + zero_point.double()).clamp(0, largest)
    return float((positions - torch.floor(positions) - 0.5).abs().min())


def _without_ties(results: Tensor, quantizer: FrozenActivationQuantizer) -> Tensor:
    """The scale nearest to the quantizer's that keeps the distance, or else the one that keeps most of it."""
    largest = integer_range(quantizer.bits, is_signed=False)[1]
    best, most = quantizer.scale, -1.0
    for count in sorted(range(-_MOST_STRETCHES, _MOST_STRETCHES + 1), key=abs):
        scale = quantizer.scale * (1 + count * _STRETCH)
        distance = distance_to_tie(results, scale, quantizer.zero_point, largest)
        if distance >= LEAST_DISTANCE:
            return scale
        if distance > most:
            best, most = scale, distance
    return best


def _functions_before(call: fx.Node, grids: dict[fx.Node, str]) -> list[fx.Node]:
    """The functions of one value, in their order, between codes and a quantizer; none where they do not begin so."""
    chain: list[fx.Node] = []
    node = _source(call)
    while node not in grids:
        if not (is_function(node) or clipping_bounds(node) is not None) or len(node.all_input_nodes) != 1:
            return []
        chain.insert(0, node)
        node = _source(node)
    return chain


def _results(chain: list[fx.Node], quantizer: FrozenActivationQuantizer) -> Tensor:
    """What the functions make of each code, (n,), in float64."""
    lowest, highest = integer_range(quantizer.bits, is_signed=False)
    codes = torch.arange(lowest, highest + 1, dtype=torch.float64)
    values = (codes - quantizer.zero_point.cpu().double()) * quantizer.scale.cpu().double()
    for node in chain:
        arguments = [values.clone() if argument is _source(node) else argument for argument in node.args]
        values = node.target(*arguments, **node.kwargs)  # type: ignore[operator]
    return values


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _is_quantization(node: fx.Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith(f"{ACTIVATION_QUANTIZERS}.")
