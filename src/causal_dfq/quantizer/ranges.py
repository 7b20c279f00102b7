"""Initial scales and zero points: the grid that costs the least squared error."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from causal_dfq.quantizer.affine import fake_quantize, integer_range

SMALLEST_SCALE = 1e-8
SAMPLED_VALUES = 65536
_WEIGHT_SHRINKS = 81
_WEIGHT_END_SHRINKS = 13
_ACTIVATION_SHRINKS = 24
_CACHED_VALUES = 2**17


def channel_view(weight: Tensor, per_channel: Tensor) -> Tensor:
    """(O,) shaped to broadcast against a weight (O, ...)."""
    return per_channel.view((-1,) + (1,) * (weight.ndim - 1))


def weight_scale(weight: Tensor, bits: int, importance: Tensor | None = None) -> Tensor:
    """Scales (O,) of a symmetric signed grid per output channel, by search over shrunk maxima.

    The squared error of each entry is weighted by `importance`, of the weight's shape.
    """
    rows = weight.detach().flatten(1)
    weighting = torch.ones_like(rows) if importance is None else importance.flatten(1)
    # As many channels at a time as a core's cache holds: each candidate is a pass over them. A GPU takes all at once.
    channels = max(1, _CACHED_VALUES // rows.shape[1]) if rows.device.type == "cpu" else len(rows)
    parts = zip(rows.split(channels), weighting.split(channels), strict=True)
    return torch.cat([_scale_of_least_error(*part, bits) for part in parts])


def _scale_of_least_error(rows: Tensor, weighting: Tensor, bits: int) -> Tensor:
    lowest, highest = integer_range(bits, is_signed=True)
    full = rows.abs().amax(1).clamp_min(SMALLEST_SCALE * highest) / highest
    best_scale, best_error = full.clone(), torch.full_like(full, torch.inf)
    zero = torch.zeros(())
    # In steps of 0.01, 1 among them; up to 1.1: the lowest code reaches one step further than the highest.
    for shrink in torch.linspace(0.3, 1.1, _WEIGHT_SHRINKS).tolist():
        scale = full * shrink
        error = (fake_quantize(rows, scale[:, None], zero, lowest, highest) - rows).square().mul_(weighting).sum(1)
        is_better = error < best_error
        best_scale = torch.where(is_better, scale, best_scale)
        best_error = torch.where(is_better, error, best_error)
    return best_scale


def weight_min_max(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points, each (O,), of an asymmetric signed grid from minimum to maximum."""
    lowest, highest = integer_range(bits, is_signed=True)
    rows = weight.detach().flatten(1)
    low, high = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
    scale = ((high - low) / (highest - lowest)).clamp_min(SMALLEST_SCALE)
    zero_point = torch.round(lowest - low / scale).clamp(lowest, highest)
    return scale, zero_point


def weight_range(weight: Tensor, bits: int, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zero points, each (O,), of an asymmetric signed grid, by search over shrunk ends.

    The squared error of each entry is weighted by `importance`, of the weight's shape.
    """
    lowest, highest = integer_range(bits, is_signed=True)
    rows, weighting = weight.detach().flatten(1), importance.flatten(1)
    low, high = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
    best_scale, best_zero_point = weight_min_max(weight, bits)
    best_error = torch.full_like(best_scale, torch.inf)
    shrinks = torch.linspace(0.4, 1.0, _WEIGHT_END_SHRINKS).tolist()
    for low_shrink, high_shrink in itertools.product(shrinks, shrinks):
        scale = ((high_shrink * high - low_shrink * low) / (highest - lowest)).clamp_min(SMALLEST_SCALE)
        zero_point = torch.round(lowest - low_shrink * low / scale).clamp(lowest, highest)
        rounded = fake_quantize(rows, scale[:, None], zero_point[:, None], lowest, highest)
        error = (rounded - rows).square().mul_(weighting).sum(1)
        is_better = error < best_error
        best_scale = torch.where(is_better, scale, best_scale)
        best_zero_point = torch.where(is_better, zero_point, best_zero_point)
        best_error = torch.where(is_better, error, best_error)
    return best_scale, best_zero_point


def affine_from_bounds(low: float, high: float, bits: int) -> tuple[float, float]:
    """Scale and zero point of the unsigned grid that spans [low, high] and holds 0 exactly."""
    _, highest = integer_range(bits, is_signed=False)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / highest, SMALLEST_SCALE)
    return scale, float(min(max(round(-low / scale), 0), highest))


def affine_over_bounds(low: float, high: float, bits: int) -> tuple[float, float]:
    """Scale and zero point of the finest unsigned grid from below `low` to above `high` that holds 0 exactly.

    `affine_from_bounds` may leave an end half a step outside; of bytes between -1 and 1 every single one would then lie
    half way between two codes. [ours]
    """
    _, highest = integer_range(bits, is_signed=False)
    low, high = min(low, 0.0), max(high, 0.0)
    _, zero_point = affine_from_bounds(low, high, bits)
    below = -low / zero_point if zero_point else 0.0
    above = high / (highest - zero_point) if zero_point < highest else 0.0
    return max(below, above, SMALLEST_SCALE), zero_point


@dataclass(frozen=True)
class ObservedValues:
    """What calibration keeps of a tensor: its ends, 0 among them, and an even sample (n,) in float32."""

    low: float
    high: float
    sample: Tensor


def observe(values: Tensor) -> ObservedValues:
    """Ends and sample of values of any shape."""
    values = values.detach().flatten()
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    return ObservedValues(low, high, _even_sample(values).float())


def merge(observed: list[ObservedValues]) -> ObservedValues:
    """Several tensors seen as one."""
    low, high = min(seen.low for seen in observed), max(seen.high for seen in observed)
    sample = torch.cat([seen.sample for seen in observed])
    return ObservedValues(low, high, _even_sample(sample))


def _even_sample(values: Tensor) -> Tensor:
    """At most SAMPLED_VALUES of values (n,), the same ones for the same n."""
    # An odd stride: an even one could meet the same columns of every picture.
    return values[:: len(values) // SAMPLED_VALUES | 1]


def activation_range(observed: ObservedValues, bits: int) -> tuple[float, float]:
    """Scale and zero point of the unsigned grid of least squared error, by search over shrunk ends.

    A tensor without negative values keeps zero point 0. [ours], the search is common in the field.
    """
    lowest, highest = integer_range(bits, is_signed=False)
    low, high, values = observed.low, observed.high, observed.sample
    shrinks = torch.linspace(0.1, 1.0, _ACTIVATION_SHRINKS).tolist()
    best, best_error = affine_from_bounds(low, high, bits), float("inf")
    for low_shrink in shrinks if low < 0 else [1.0]:
        for high_shrink in shrinks:
            scale, zero_point = affine_from_bounds(low * low_shrink, high * high_shrink, bits)
            rounded = fake_quantize(values, torch.tensor(scale), torch.tensor(zero_point), lowest, highest)
            error = float((rounded - values).square().sum())
            if error < best_error:
                best, best_error = (scale, zero_point), error
    return best
