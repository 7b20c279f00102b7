"""Learned rounding: where it starts, what it may choose, and what it leaves."""

import pytest
import torch

from causal_dfq.quantizer.modules import WeightQuantizer
from causal_dfq.quantizer.rounding import LearnedRounding


def made(bits: int = 3, is_symmetric: bool = True) -> tuple[torch.Tensor, WeightQuantizer, LearnedRounding]:
    weight = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = WeightQuantizer(weight, bits, is_symmetric)
    return weight, quantizer, LearnedRounding(weight, quantizer)


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_it_starts_at_the_weight_itself_clipped_to_the_grid(is_symmetric: bool) -> None:
    weight, quantizer, rounding = made(is_symmetric=is_symmetric)
    scale, zero = quantizer.scale.detach(), quantizer.zero_point
    expected = torch.clamp(weight / scale, -4 - zero, 3 - zero) * scale
    torch.testing.assert_close(rounding(weight).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_untrained_it_decides_as_rounding_to_nearest_does(is_symmetric: bool) -> None:
    weight, quantizer, rounding = made(is_symmetric=is_symmetric)
    torch.testing.assert_close(rounding.decided(), quantizer(weight).detach(), rtol=1e-5, atol=1e-6)


def test_what_it_decides_stays_when_the_quantizer_rounds_it() -> None:
    _, quantizer, rounding = made()
    with torch.no_grad():
        rounding.logit.normal_(0, 5, generator=torch.Generator().manual_seed(1))
        quantizer.log_scale.add_(0.1)
    decided = rounding.decided()
    torch.testing.assert_close(quantizer(decided).detach(), decided, rtol=1e-5, atol=1e-6)
    distance = (decided / quantizer.scale.detach() - rounding.floor).round()
    is_inside = (rounding.floor >= -4) & (rounding.floor < 3)
    assert set(distance[is_inside].unique().tolist()) == {0.0, 1.0}


def test_undecided_weights_count_until_they_have_chosen() -> None:
    _, _, rounding = made()
    exponent = torch.tensor(2.0)
    h = rounding.share.detach().double()
    expected = (1 - (2 * h - 1).abs() ** 2).sum()
    assert rounding.undecided(exponent).item() == pytest.approx(expected.item(), rel=1e-4)
    with torch.no_grad():
        rounding.logit.copy_(torch.where(rounding.logit > 0, 20.0, -20.0))
    assert rounding.undecided(exponent).item() == pytest.approx(0, abs=1e-4)


def test_choices_and_step_sizes_have_gradients() -> None:
    weight, quantizer, rounding = made()
    (rounding(weight) * torch.arange(weight.numel()).view(weight.shape)).sum().backward()
    assert rounding.logit.grad.abs().sum() > 0
    assert quantizer.log_scale.grad.abs().min() > 0


def test_a_weight_that_is_rounded_once_stays_as_it_was_and_is_rounded_again_afterwards() -> None:
    weight, quantizer, _ = made()
    rounded = quantizer(weight)
    with quantizer.rounded_once(weight):
        quantizer.log_scale.data += 1.0
        assert torch.equal(quantizer(weight), rounded)
    assert not torch.equal(quantizer(weight), rounded)
