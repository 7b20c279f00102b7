"""The affine quantizer and its gradient: one definition, used for weights and for activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from causal_dfq.fusion import Formula, from_memory_order, in_memory_order, is_fusing, like_in_memory


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


@Formula
def _fake_quantize_rows(values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
    offset = torch.round(zero_point)
    codes = torch.round(values.float() / scale)
    return (torch.clamp(codes, lowest - offset, highest - offset) * scale).to(values.dtype)


@Formula
def _fake_quantize_rows_gradients(
    gradient: Tensor, values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int
) -> tuple[Tensor, Tensor, Tensor]:
    offset = torch.round(zero_point)
    exact = values.float() / scale
    rounded = torch.round(exact)
    codes = torch.clamp(rounded, lowest - offset, highest - offset)
    incoming = gradient.float()
    passed = torch.where(codes == rounded, incoming, 0.0)
    # Inside the range codes - exact, beyond its ends the codes.
    scale_gradient = (incoming * codes - passed * exact).sum_to_size(scale.shape)
    zero_point_gradient = -scale * (incoming - passed).sum_to_size(scale.shape)
    return passed.to(gradient.dtype), scale_gradient, zero_point_gradient


class _LearnedFakeQuantize(torch.autograd.Function):
    """`fake_quantize` with the straight-through gradients of learned step sizes.

    Inside the range d output / d values = 1 and d output / d scale = round(v) - v, with v = values /
    scale; outside they are 0 and the code's distance to the zero point. The zero point moves the ends
    of the range: d output / d zero_point = -scale outside, 0 inside. Only `values` are kept.

    Source: Esser et al., "Learned step size quantization" (ICLR 2020), eq. 3; the zero point after
    Bhalgat et al., "LSQ+" (2020), eq. 5.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
        ctx.save_for_backward(values, scale, zero_point)
        ctx.ends = lowest, highest
        output = _fake_quantize_rows(_rows(values, scale), *_columns(scale, zero_point), lowest, highest)
        return from_memory_order(output, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, zero_point = ctx.saved_tensors
        gradient = like_in_memory(gradients[0], values)
        to_values, to_scale, to_zero_point = _fake_quantize_rows_gradients(
            _rows(gradient, scale), _rows(values, scale), *_columns(scale, zero_point), *ctx.ends
        )
        return (
            from_memory_order(to_values, values),
            to_scale.view(scale.shape),
            to_zero_point.view(scale.shape) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def _rows(values: Tensor, scale: Tensor) -> Tensor:
    """Values in memory order: (n,) for one scale, (O, n) for a scale (O, 1, ...)."""
    ordered = in_memory_order(values)
    return ordered.reshape(-1) if scale.ndim == 0 else ordered.reshape(len(scale), -1)


def _columns(scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point shaped to broadcast against `_rows`."""
    return (scale, zero_point) if scale.ndim == 0 else (scale.reshape(-1, 1), zero_point.reshape(-1, 1))


class _LearnedTensorFakeQuantize(torch.autograd.Function):
    """The same for one scale a tensor, in few passes over large activations where nothing is compiled.

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
        values, output, scale = ctx.saved_tensors
        gradient = like_in_memory(gradients[0], values)
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


def learned_fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
    """`fake_quantize` with a real-valued, rounded zero point and gradients for all three tensors.

    Scale and zero point are scalars, or (O, 1, ...) for values (O, ...). The arithmetic is float32 whatever
    the type of `values`; the result has the type of `values`.
    """
    # A GPU would have to be waited for, for the numbers that those operators take.
    takes_few_operators = scale.ndim == 0 and not is_fusing() and values.device.type == "cpu"
    function = _LearnedTensorFakeQuantize if takes_few_operators else _LearnedFakeQuantize
    result: Tensor = function.apply(values, scale, zero_point, lowest, highest)
    return result
