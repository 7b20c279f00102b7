"""Depthwise convolutions in training: the gradient of the features, and in which type they are computed."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from causal_dfq.config import make_options
from causal_dfq.pipeline import prepare, resolve_device, start_run
from causal_dfq.training.depthwise import constant_depthwise, gradient_of_features
from tests.networks import Grouped, trained

CASES = [
    # kernel, stride, padding, dilation, height, width
    ((3, 3), (1, 1), (1, 1), (1, 1), 9, 8),
    ((3, 3), (2, 2), (1, 1), (1, 1), 9, 8),
    ((3, 3), (2, 2), (0, 0), (1, 1), 9, 8),
    ((5, 5), (2, 2), (2, 2), (1, 1), 7, 10),
    ((5, 3), (3, 2), (1, 0), (1, 1), 11, 8),
    ((3, 3), (2, 1), (2, 1), (2, 2), 12, 9),
    ((1, 1), (2, 2), (0, 0), (1, 1), 6, 5),
]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "height", "width"), CASES)
def test_the_gradient_of_the_features_is_that_of_autograd(
    kernel: Any, stride: Any, padding: Any, dilation: Any, height: int, width: int
) -> None:
    features, weight = normal(2, 3, height, width).requires_grad_(), normal(3, 1, *kernel)
    result = functional.conv2d(features, weight, None, stride, padding, dilation, 3)
    gradient = normal(*result.shape)
    (expected,) = torch.autograd.grad(result, features, gradient)
    found = gradient_of_features(gradient, weight, (height, width), stride, padding, dilation)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_constant_one_computes_in_bfloat16_under_autocast(stride: int, has_bias: bool) -> None:
    features, weight = normal(4, 8, 9, 9).float().requires_grad_(), normal(8, 1, 3, 3).float()
    bias = normal(8).float() if has_bias else None
    options = [stride, stride], [1, 1], [1, 1], 8
    with torch.autocast("cpu", torch.bfloat16):
        found = constant_depthwise(features, weight, bias, *options)
    assert found.dtype == torch.bfloat16
    expected = functional.conv2d(features, weight, bias, *options)
    gradient = normal(*expected.shape)
    (wanted,) = torch.autograd.grad(expected, features, gradient.float())
    (given,) = torch.autograd.grad(found, features, gradient.bfloat16())
    assert given.dtype == torch.float32
    for got, exact in ((found.float(), expected), (given, wanted)):
        # bfloat16 has 8 bits of mantissa.
        assert float((got - exact).detach().norm() / exact.detach().norm()) < 2**-7


@pytest.mark.parametrize(
    ("trains", "is_under_autocast", "filters", "padding", "groups"),
    [
        (True, True, 4, 1, 4),
        (False, False, 4, 1, 4),
        (False, True, 8, 1, 4),
        (False, True, 4, 3, 4),
        (False, True, 4, 1, 2),
    ],
    ids=["a trained weight", "without autocast", "two filters a channel", "more padding than reach", "wider groups"],
)
def test_all_others_compute_in_float32(
    trains: bool, is_under_autocast: bool, filters: int, padding: int, groups: int
) -> None:
    features, weight = normal(2, 4, 6, 6).float().requires_grad_(), normal(filters, 4 // groups, 3, 3).float()
    weight.requires_grad_(trains)
    options = [1, 1], [padding, padding], [1, 1], groups
    with torch.autocast("cpu", torch.bfloat16, enabled=is_under_autocast):
        found = constant_depthwise(features.bfloat16(), weight, None, *options)
    expected = functional.conv2d(features.bfloat16().float(), weight, None, *options)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    wanted = [features, weight] if trains else [features]
    gradients = (torch.autograd.grad(result.square().sum(), wanted) for result in (found, expected))
    for given, exact in zip(*gradients, strict=True):
        assert torch.equal(given, exact)


@pytest.mark.parametrize("bits", ["w4a4", "w32a4"])
def test_grouped_convolutions_run_in_every_view(bits: str) -> None:
    options = make_options(bits=bits, input_shape=(3, 16, 16))
    network = trained(Grouped())
    run = start_run(prepare(network, options), options, resolve_device("cpu"))
    run.views._uses_bfloat16 = True
    run.calibrate()
    batch = run.student_batch()
    with torch.no_grad():
        exact = network(batch.drawn.images)
        logits, statistics, _ = run.views.statistics_view(batch.drawn.images)
    for found in (logits, batch.pretrained.logits):
        assert float((found - exact).norm() / exact.norm()) < 0.03
    assert len(statistics) == 3
    for loss in (lambda: run.synthesis.loss(run.recipe, run.random), lambda: run.student_loss(batch)):
        value, _ = loss()
        value.backward()
        assert value.isfinite()
