"""How far Q's features lie from P's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from causal_dfq.fusion import Formula, from_memory_order, in_memory_order, like_in_memory

SMALLEST_SIZE = 1e-8


@Formula
def _squared_norms(value: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """|value - target|^2 and |target|^2."""
    difference, size = value.float() - target.float(), target.float()
    return (difference * difference).sum(), (size * size).sum()


@Formula
def _scaled_difference(value: Tensor, target: Tensor, factor: Tensor) -> Tensor:
    return ((value.float() - target.float()) * factor).to(value.dtype)


class _RelativeError(torch.autograd.Function):
    """|value - target|^2 / |target|^2 with its gradient 2 (value - target) / |target|^2; keeps both tensors alone."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, target: Tensor) -> Tensor:
        target = like_in_memory(target, value)
        norms: tuple[Tensor, Tensor] = _squared_norms(*_flat(value, target))
        distance, size = norms[0], norms[1].clamp_min(SMALLEST_SIZE)
        ctx.save_for_backward(value, target, size)
        return distance / size

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        value, target, size = ctx.saved_tensors
        gradient = _scaled_difference(*_flat(value, target), 2 * gradients[0] / size)
        return from_memory_order(gradient, value), None


def _flat(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(in_memory_order(tensor).reshape(-1) for tensor in tensors)


def relative_error(feature: Tensor, target: Tensor) -> Tensor:
    """|f_Q - f_P|^2 / |f_P|^2 of tensors of one shape, the target constant [ours, common in reconstruction]."""
    result: Tensor = _RelativeError.apply(feature, target)
    return result
