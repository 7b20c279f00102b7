"""Initial grids cost no more squared error than the plain ones."""

import pytest
import torch
from torch import Tensor

from causal_dfq.quantizer.affine import fake_quantize, integer_range
from causal_dfq.quantizer.ranges import (
    activation_range,
    affine_from_bounds,
    affine_over_bounds,
    merge,
    observe,
    weight_min_max,
    weight_scale,
)


def heavy_tailed(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) ** 3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weight_scale_beats_the_maximum_in_every_channel(bits: int) -> None:
    weight = heavy_tailed(6, 50)
    lowest, highest = integer_range(bits, is_signed=True)
    full = weight.abs().amax(1) / highest

    def error(scale: Tensor) -> Tensor:
        return (fake_quantize(weight, scale[:, None], torch.tensor(0.0), lowest, highest) - weight).square().sum(1)

    assert (error(weight_scale(weight, bits)) <= error(full) * (1 + 1e-5)).all()


def test_weight_of_zeros_gets_a_positive_scale() -> None:
    assert (weight_scale(torch.zeros(2, 9), 4) > 0).all()


def test_min_max_grid_reaches_both_ends() -> None:
    weight = heavy_tailed(6, 50)
    scale, zero_point = weight_min_max(weight, 4)
    rounded = fake_quantize(weight, scale[:, None], zero_point[:, None], -8, 7)
    assert ((rounded - weight).abs().amax(1) <= scale * 1.01).all()
    assert torch.equal(zero_point, zero_point.round())


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_activation_range_beats_the_full_range(shift: float) -> None:
    values = (heavy_tailed(20000) + shift).clamp_min(0 if shift == 0 else -torch.inf)

    def error(scale: float, zero_point: float) -> float:
        rounded = fake_quantize(values, torch.tensor(scale), torch.tensor(zero_point), 0, 15)
        return float((rounded - values).square().sum())

    full = affine_from_bounds(float(values.min()), float(values.max()), 4)
    assert error(*activation_range(observe(values), 4)) < error(*full)


def test_values_without_a_negative_keep_zero_point_zero() -> None:
    assert activation_range(observe(torch.rand(1000)), 4)[1] == 0


def test_bounds_hold_zero_exactly() -> None:
    scale, zero_point = affine_from_bounds(-1.99, 2.13, 8)
    assert zero_point == round(zero_point)
    assert (255 - zero_point) * scale == pytest.approx(2.13, abs=scale)
    assert (0 - zero_point) * scale == pytest.approx(-1.99, abs=scale)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-2.118, 2.64), (0.0, 255.0), (-1.0, 0.0), (0.0, 0.0)])
def test_a_grid_over_bounds_holds_both_ends_and_zero(low: float, high: float) -> None:
    scale, zero_point = affine_over_bounds(low, high, 8)
    assert zero_point == round(zero_point)
    assert -zero_point * scale <= low + 1e-6
    assert (255 - zero_point) * scale >= high - 1e-6
    # One end is met.
    assert min(low + zero_point * scale, (255 - zero_point) * scale - high) == pytest.approx(0, abs=1e-6)


def test_every_byte_between_minus_one_and_one_has_a_code_of_its_own() -> None:
    scale, zero_point = affine_over_bounds(-1.0, 1.0, 8)
    codes = torch.round((torch.arange(256) / 127.5 - 1) / scale) + zero_point
    assert len(codes.unique()) == 255  # zero lies between two bytes
    assert float(codes.min()) >= 0
    assert float(codes.max()) <= 255


def test_sample_of_a_large_tensor_meets_every_column() -> None:
    columns = torch.arange(32.0).expand(64, 16, 32, 32)
    sample = observe(columns).sample
    assert len(sample) <= 65536
    counts = torch.bincount(sample.long(), minlength=32)
    assert counts.min() > 0.9 * counts.max()


def test_merged_observations_span_all_of_them() -> None:
    merged = merge([observe(torch.tensor([1.0, 3.0])), observe(torch.tensor([-2.0, 0.5]))])
    assert (merged.low, merged.high) == (-2.0, 3.0)
    assert merged.sample.tolist() == [1.0, 3.0, -2.0, 0.5]
