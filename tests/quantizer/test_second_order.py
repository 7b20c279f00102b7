"""Rounding by second moments: against its formulas column by column, and that it costs a layer's output least."""

import pytest
import torch
from torch import Tensor

from causal_dfq.quantizer.affine import fake_quantize
from causal_dfq.quantizer.second_order import Moments, joined, least_squares_weight, round_in_order, within_cell

LOWEST, HIGHEST = -4, 3


def problem(inputs: int = 90, outputs: int = 6, groups: int = 2) -> tuple[Tensor, Moments, Tensor, Tensor]:
    """Weights (G, O / G, D) with a bias, moments of correlated inputs, and both networks' samples."""
    random = torch.Generator().manual_seed(3)
    mixing = torch.randn(groups, inputs, inputs, generator=random) / inputs**0.5
    read_by_p = torch.randn(groups, 4 * inputs, inputs, generator=random) @ mixing + 0.3
    read_by_q = read_by_p + 0.1 * torch.randn(read_by_p.shape, generator=random)
    weight = torch.randn(groups * outputs, inputs, generator=random)
    bias = torch.randn(groups * outputs, generator=random)
    return joined(weight, bias, groups), Moments.of(read_by_p, read_by_q), read_by_p.double(), read_by_q.double()


def with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones_like(rows[..., :1])], -1)


def output_error(weight: Tensor, target: Tensor, read_by_p: Tensor, read_by_q: Tensor) -> float:
    difference = with_one(read_by_q) @ weight.mT - with_one(read_by_p) @ target.mT
    return float(difference.square().sum())


def grid(weight: Tensor) -> tuple[Tensor, Tensor, int, int]:
    scale = weight[:, :, :-1].abs().amax(2) / HIGHEST
    return scale, torch.zeros_like(scale), LOWEST, HIGHEST


def test_moments_are_the_sums_of_products_of_what_both_networks_read_and_a_one() -> None:
    _, moments, p, q = problem()
    for found, first in ((moments.own, q), (moments.cross, p)):
        torch.testing.assert_close(found, with_one(first).mT @ with_one(q), rtol=1e-5, atol=1e-3)


def test_least_squares_without_pull_is_the_regression_on_what_q_reads() -> None:
    weight, moments, p, q = problem()
    found = least_squares_weight(weight, moments, 0.0)
    expected = torch.linalg.lstsq(with_one(q), with_one(p) @ weight.mT).solution.mT
    # Moments are summed in float32.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_strong_pull_keeps_the_weight_and_leaves_the_bias_free() -> None:
    weight, moments, p, q = problem()
    found = least_squares_weight(weight, moments, 1e9)
    torch.testing.assert_close(found[:, :, :-1], weight[:, :, :-1], rtol=1e-4, atol=1e-4)
    shift = (with_one(p) @ weight.mT - q @ weight[:, :, :-1].mT).mean(1)
    torch.testing.assert_close(found[:, :, -1], shift, rtol=1e-4, atol=1e-3)


def test_one_input_after_another_is_rounded_and_the_others_make_up_for_it() -> None:
    """The blocks give what the definition does: the exact minimum over the free weights after each rounding."""
    weight, moments, _, _ = problem()
    scale, zero_point, lowest, highest = grid(weight)
    found = round_in_order(weight, moments, (scale, zero_point, lowest, highest), 0.0)
    own = moments.damped(0.0)
    order = torch.argsort(moments.importance.mean(0), descending=True).tolist()
    expected = weight.clone()
    for place, chosen in enumerate(order):
        rounded = fake_quantize(expected[:, :, chosen], scale, zero_point, lowest, highest)
        error = expected[:, :, chosen] - rounded
        free = [*order[place + 1 :], weight.shape[2] - 1]
        among_free, with_chosen = own[:, free][:, :, free], own[:, free, chosen]
        # d/dW of the quadratic form is zero: W_free moves by error * inverse(H_ff) H_fc.
        move = torch.linalg.solve(among_free, with_chosen)
        expected[:, :, free] += error[:, :, None] * move[:, None, :]
        expected[:, :, chosen] = rounded
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_output_errs_less_than_after_rounding_to_the_nearest_code() -> None:
    weight, moments, p, q = problem()
    scale, zero_point, lowest, highest = grid(weight)
    nearest = weight.clone()
    nearest[:, :, :-1] = fake_quantize(weight[:, :, :-1], scale[..., None], zero_point[..., None], lowest, highest)
    start = least_squares_weight(weight, moments, 0.01)
    found = round_in_order(start, moments, grid(weight), 0.01)
    codes = found[:, :, :-1] / scale[..., None]
    torch.testing.assert_close(codes, codes.round())
    assert float(codes.min()) >= LOWEST
    assert float(codes.max()) <= HIGHEST
    assert output_error(found, weight, p, q) < 0.5 * output_error(nearest, weight, p, q)


def test_inputs_that_are_never_seen_do_no_harm() -> None:
    weight, _, p, q = problem()
    p[:, :, :5] = q[:, :, :5] = 0
    moments = Moments.of(p, q)
    start = least_squares_weight(weight, moments, 0.2)
    found = round_in_order(start, moments, grid(weight), 0.01)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(start[:, :, :5], weight[:, :, :5])
    silent = Moments.of(torch.zeros_like(p), torch.zeros_like(q))
    assert bool(round_in_order(least_squares_weight(weight, silent, 0.2), silent, grid(weight), 0.01).isfinite().all())


@pytest.mark.parametrize("seed", [0, 1])
def test_real_weights_in_their_cells_round_to_their_codes(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 3, 11, generator=random).double()
    scale = 0.3 + torch.rand(2, 3, generator=random).double()
    rounded = fake_quantize(3 * weight, scale[..., None], torch.zeros(()), LOWEST, HIGHEST)
    real = within_cell(weight, rounded, scale)
    again = fake_quantize(real, scale[..., None], torch.zeros(()), LOWEST, HIGHEST)
    torch.testing.assert_close(again[:, :, :-1], rounded[:, :, :-1])
    assert torch.equal(real[:, :, -1], rounded[:, :, -1])
    has_same_code = (weight / scale[..., None] - rounded / scale[..., None]).abs()[:, :, :-1] < 0.4
    torch.testing.assert_close(real[:, :, :-1][has_same_code], weight[:, :, :-1][has_same_code])
