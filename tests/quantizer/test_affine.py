"""The quantizer against its formula in float64, and its gradients against their definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from causal_dfq.quantizer.affine import (
    dequantize,
    fake_quantize,
    integer_range,
    learned_fake_quantize,
    quantize,
)


def reference(values: Tensor, scale: float, zero_point: int, lowest: int, highest: int) -> Tensor:
    codes = [min(max(round(value / scale) + zero_point, lowest), highest) for value in values.double().tolist()]
    return torch.tensor([(code - zero_point) * scale for code in codes], dtype=torch.float64)


@pytest.mark.parametrize(
    ("bits", "is_signed", "expected"), [(4, True, (-8, 7)), (4, False, (0, 15)), (8, True, (-128, 127))]
)
def test_integer_range(bits: int, is_signed: bool, expected: tuple[int, int]) -> None:
    assert integer_range(bits, is_signed) == expected


def test_fake_quantize_is_its_formula_in_float64() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    result = fake_quantize(values, torch.tensor(0.25, dtype=torch.float64), torch.tensor(5.0), 0, 15)
    torch.testing.assert_close(result, reference(values, 0.25, 5, 0, 15), rtol=0, atol=0)


def test_halves_round_to_even() -> None:
    codes = quantize(torch.tensor([0.5, 1.5, 2.5, -0.5]), torch.tensor(1.0), torch.tensor(0.0), -8, 7)
    assert codes.tolist() == [0, 2, 2, 0]


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-100, 100, width=32),
    st.floats(0.015625, 4, width=32),
    st.integers(0, 15),
)
def test_error_is_at_most_half_a_step_inside_the_range(value: float, scale: float, zero_point: int) -> None:
    values, step, offset = torch.tensor([value]).double(), torch.tensor(scale).double(), torch.tensor(zero_point)
    result = fake_quantize(values, step, offset, 0, 15)
    low, high = dequantize(torch.tensor(0), step, offset), dequantize(torch.tensor(15), step, offset)
    assert abs(float(result - values.clamp(low, high))) <= scale / 2 * (1 + 1e-9)
    assert torch.equal(fake_quantize(result, step, offset, 0, 15), result)


def gradients(
    values: Tensor, scale: Tensor, zero_point: Tensor, weight: Tensor, ends: tuple[int, int] = (0, 15)
) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in (values, scale, zero_point)]
    output = learned_fake_quantize(*leaves, *ends)
    (output * weight).sum().backward()
    return output.detach(), *(leaf.grad for leaf in leaves)


def straight_through(
    values: Tensor, scale: Tensor, zero_point: Tensor, weight: Tensor, ends: tuple[int, int] = (0, 15)
) -> tuple[Tensor, ...]:
    """The documented gradients, written out in float64."""
    values, scale, weight = values.double(), scale.double(), weight.double()
    offset = zero_point.double().round()
    code = (values / scale).round() + offset
    inside = (code >= ends[0]) & (code <= ends[1])
    output = (code.clamp(*ends) - offset) * scale
    to_scale = torch.where(inside, (values / scale).round() - values / scale, code.clamp(*ends) - offset)
    to_offset = torch.where(inside, 0.0, -scale)
    reduce = (lambda t: t.sum()) if scale.ndim == 0 else (lambda t: t.sum_to_size(scale.shape))
    return output, weight * inside, reduce(weight * to_scale), reduce(weight * to_offset)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradients_of_one_scale_are_those_of_learned_step_sizes(layout: torch.memory_format) -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(4, 3, 5, 6, generator=random).contiguous(memory_format=layout) * 3
    weight = torch.randn(4, 3, 5, 6, generator=random)
    scale, zero_point = torch.tensor(0.3), torch.tensor(5.3)
    found = gradients(values, scale, zero_point, weight)
    for actual, expected in zip(found, straight_through(values, scale, zero_point, weight), strict=True):
        torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("ends", [(0, 15), (-8, 7)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradients_of_one_scale_a_channel(layout: torch.memory_format, ends: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(6, 2, 3, 5, generator=random).contiguous(memory_format=layout) * 3
    weight = torch.randn(6, 2, 3, 5, generator=random)
    scale = torch.rand(6, 1, 1, 1, generator=random) * 0.3 + 0.1
    zero_point = torch.full((6, 1, 1, 1), 4.0 + ends[0])
    found = gradients(values, scale, zero_point, weight, ends)
    for actual, expected in zip(found, straight_through(values, scale, zero_point, weight, ends), strict=True):
        torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("arithmetic")
def test_fused_gradients_of_bfloat16_values_are_summed_in_float32() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(8, 16, 12, 12, generator=random).to(torch.bfloat16)
    values = values.contiguous(memory_format=torch.channels_last)
    scale, zero_point = torch.tensor(0.3), torch.tensor(5.0)
    found = gradients(values, scale, zero_point, torch.ones_like(values))
    expected = straight_through(values, scale, zero_point, torch.ones_like(values))
    assert found[1].dtype == torch.bfloat16
    assert float(found[2]) == pytest.approx(float(expected[2]), rel=0.02)
    assert float(found[3]) == pytest.approx(float(expected[3]), rel=1e-4)


@pytest.mark.usefixtures("arithmetic")
def test_clipped_values_give_the_scale_the_gradient_of_finite_differences() -> None:
    values, step = torch.tensor([9.0, 20.0, -7.0]), 1e-3
    scale = torch.tensor(0.3, requires_grad=True)
    offset = torch.tensor(5.0)
    learned_fake_quantize(values, scale, offset, 0, 15).sum().backward()
    ends = [fake_quantize(values, torch.tensor(0.3 + sign * step), offset, 0, 15).sum() for sign in (1, -1)]
    assert float(scale.grad) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-3)


@pytest.mark.usefixtures("arithmetic")
def test_bfloat16_values_keep_their_type_and_their_codes() -> None:
    values = (torch.arange(-20, 40) * 0.3).to(torch.bfloat16)
    result = learned_fake_quantize(values, torch.tensor(0.5), torch.tensor(3.0), 0, 15)
    assert result.dtype == torch.bfloat16
    exact = fake_quantize(values.float(), torch.tensor(0.5), torch.tensor(3.0), 0, 15)
    assert torch.equal(result.float(), exact)
