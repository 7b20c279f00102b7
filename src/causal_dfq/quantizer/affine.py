"""The affine quantizer and its gradient: one definition, used for weights and for activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def integer_range(bits: int, is_signed: bool) -> tuple[int, int]:
    """The smallest and the largest code: [-2^(b-1), 2^(b-1) - 1] if signed, else [0, 2^b - 1]."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)


def quantize(values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
    """Integer codes, as float: clamp(round(values / scale) + zero_point), halves to even.

    `scale` and `zero_point` broadcast against `values`; the zero point is an integer.
    """
    return torch.clamp(torch.round(values / scale) + zero_point, lowest, highest)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The real values that codes stand for: (codes - zero_point) * scale."""
    return (codes - zero_point) * scale


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
    """`values` rounded to the grid that the codes can express; no gradient is defined here."""
    return dequantize(quantize(values, scale, zero_point, lowest, highest), scale, zero_point)


class _LearnedFakeQuantize(torch.autograd.Function):
    """`fake_quantize` with the straight-through gradients of learned step sizes.

    Inside the range d output / d values = 1 and d output / d scale = round(v) - v, with v = values /
    scale; outside they are 0 and the code's distance to the zero point. The zero point moves the ends
    of the range: d output / d zero_point = -scale outside, 0 inside.

    Source: Esser et al., "Learned step size quantization" (ICLR 2020), eq. 3; the zero point after
    Bhalgat et al., "LSQ+" (2020), eq. 5.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
        offset = torch.round(zero_point)
        rounded = (values.float() / scale).round_()
        output = torch.clamp(rounded, lowest - offset, highest - offset)
        inside = output == rounded
        output = output.mul_(scale).to(values.dtype)
        ctx.save_for_backward(values, output, inside, scale)
        ctx.has_offset = ctx.needs_input_grad[2]
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        values, output, inside, scale = ctx.saved_tensors
        values_gradient = gradient * inside
        scale_gradient = _dot_over_broadcast(gradient, output, scale)
        scale_gradient -= _dot_over_broadcast(values_gradient, values, scale)
        scale_gradient /= scale
        zero_point_gradient = None
        if ctx.has_offset:
            outside = (gradient - values_gradient).float()
            zero_point_gradient = -scale * outside.sum_to_size(scale.shape)
        return values_gradient, scale_gradient, zero_point_gradient, None, None


def _dot_over_broadcast(first: Tensor, second: Tensor, like: Tensor) -> Tensor:
    """sum(first * second) over the dimensions along which `like` is broadcast, in float32."""
    if like.ndim == 0:
        return (first.float() * second.float()).sum()
    return (first.float() * second.float()).sum_to_size(like.shape)


def learned_fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
    """`fake_quantize` with a real-valued, rounded zero point and gradients for all three tensors.

    The arithmetic is float32 whatever the type of `values`; the result has the type of `values`.
    """
    result: Tensor = _LearnedFakeQuantize.apply(values, scale, zero_point, lowest, highest)
    return result


class _LearnedTensorFakeQuantize(torch.autograd.Function):
    """The same for one scale a tensor, in few passes over large activations.

    d loss / d scale = sum g (output - inside(values)) / scale, where inside() is 0 beyond the ends: the
    bracket is formed before it is weighed, so that bfloat16 loses nothing where little is rounded.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
        step, offset = scale.item(), round(zero_point.item())
        low, high = lowest - offset, highest - offset
        rounded = (values.float() / step).round_().clamp_(low, high)
        output = rounded.mul_(step).to(values.dtype)
        ctx.save_for_backward(values, output, scale)
        # Half a step beyond the ends still rounds to them.
        ctx.ends = ((low - 0.5) * step, (high + 0.5) * step)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous(memory_format=_memory_format(gradients[0]))
        values, output, scale = ctx.saved_tensors
        values_gradient = _inside(gradient, values, ctx.ends)
        bracket = output - _inside(values, values, ctx.ends)
        scale_gradient = bracket.mul_(gradient).sum(dtype=torch.float32) / scale
        zero_point_gradient = None
        if ctx.needs_input_grad[2]:
            outside = gradient.sum(dtype=torch.float32) - values_gradient.sum(dtype=torch.float32)
            zero_point_gradient = -scale * outside
        return values_gradient, scale_gradient, zero_point_gradient, None, None


def _inside(weighed: Tensor, values: Tensor, ends: tuple[float, float]) -> Tensor:
    """`weighed` where `values` lie between the ends, 0 elsewhere: one pass, without a mask in memory."""
    result: Tensor = torch.ops.aten.hardtanh_backward(weighed, values, *ends)
    return result


def _memory_format(tensor: Tensor) -> torch.memory_format:
    return torch.channels_last if tensor.ndim == 4 else torch.contiguous_format


def learned_fake_quantize_tensor(
    values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int
) -> Tensor:
    """`learned_fake_quantize` for a scalar scale and zero point, quicker on large tensors."""
    result: Tensor = _LearnedTensorFakeQuantize.apply(values, scale, zero_point, lowest, highest)
    return result
