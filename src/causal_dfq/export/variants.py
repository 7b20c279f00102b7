"""The finished network as runtimes with fewer abilities want it; each is a simulation of its own."""

from __future__ import annotations

import copy

import torch
from torch import fx

from causal_dfq.quantizer.accumulator import drop_accumulators
from causal_dfq.quantizer.affine import integer_range, quantize
from causal_dfq.quantizer.modules import FrozenActivationQuantizer, IntegerWeight

_REDUCED_BITS = 7


def with_symmetric_activations(simulated: fx.GraphModule) -> fx.GraphModule:
    """Grids whose zero point is in the middle, wide enough for both ends of the grids that were: signed codes
    with zero point 0, less the offset that unsigned ones have. A tensor without negative values loses a bit.
    """
    module = copy.deepcopy(simulated)
    drop_accumulators(module)
    for quantizer in module.modules():
        if isinstance(quantizer, FrozenActivationQuantizer):
            _, highest = integer_range(quantizer.bits, is_signed=False)
            below, above = integer_range(quantizer.bits, is_signed=True)
            low = -quantizer.zero_point * quantizer.scale
            high = (highest - quantizer.zero_point) * quantizer.scale
            quantizer.scale.copy_(torch.maximum(low / below, high / above))
            quantizer.zero_point.fill_(-below)
    return module


def with_reduced_weights(simulated: fx.GraphModule) -> fx.GraphModule:
    """Weights of 8 bits in 7: for processors without VNNI, where the sum of two products of uint8 and int8 saturates
    in 16 bits.
    """
    module = copy.deepcopy(simulated)
    drop_accumulators(module)
    ends = integer_range(_REDUCED_BITS, is_signed=True)
    for weight in module.modules():
        if isinstance(weight, IntegerWeight) and weight.bits > _REDUCED_BITS:
            real = weight()
            weight.scale.mul_(2)
            weight.zero_point.copy_((weight.zero_point.float() / 2).round().clamp(*ends))
            weight.codes.copy_(quantize(real, weight.scale, weight.zero_point.float(), *ends))
            weight.bits = _REDUCED_BITS
    return module
