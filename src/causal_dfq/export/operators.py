"""Rounding as two operators that an exporter can name, and what each is in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnxscript import opset18 as op
from torch import Tensor

from causal_dfq.quantizer.affine import dequantize, fake_quantize
from causal_dfq.quantizer.ranges import channel_view


@torch.library.custom_op("causal_dfq::requantize", mutates_args=())
def requantize(values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
    """Values of any shape on the grid of codes lowest to highest, both within the type of `zero_point`: uint8 or int8.

    `scale` and `zero_point` are scalars.
    """
    return fake_quantize(values, scale, zero_point.to(values.dtype), lowest, highest)


@requantize.register_fake
def _(values: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
    return torch.empty_like(values)


@torch.library.custom_op("causal_dfq::stored", mutates_args=())
def stored(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """What stored codes (O, ...) stand for, with scales and zero points (O,): float32."""
    return dequantize(codes.float(), channel_view(codes, scale), channel_view(codes, zero_point.float()))


@stored.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


def _requantize_in_onnx(values: Any, scale: Any, zero_point: Any, lowest: int, highest: int) -> Any:
    codes = op.QuantizeLinear(values, scale, zero_point)
    is_signed = lowest < 0
    if (lowest, highest) != ((-128, 127) if is_signed else (0, 255)):
        # QuantizeLinear saturates at the ends of its type alone.
        kind = onnx.TensorProto.INT8 if is_signed else onnx.TensorProto.UINT8
        ends = (onnx.helper.make_tensor(name, kind, [], [end]) for name, end in (("low", lowest), ("high", highest)))
        codes = op.Clip(codes, *(op.Constant(value=end) for end in ends))
    return op.DequantizeLinear(codes, scale, zero_point)


def _stored_in_onnx(codes: Any, scale: Any, zero_point: Any) -> Any:
    return op.DequantizeLinear(codes, scale, zero_point, axis=0)


# As torch.onnx.export takes them.
IN_ONNX: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.causal_dfq.requantize.default: _requantize_in_onnx,
    torch.ops.causal_dfq.stored.default: _stored_in_onnx,
}
