"""The relative error and its gradient against float64, with and without compilation."""

import contextlib

import pytest
import torch

from causal_dfq import fusion as fusion_module
from causal_dfq.fusion import fusion
from causal_dfq.training.feature_error import relative_error


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 5)])
def test_relative_error_and_its_gradient_are_their_formula(
    shape: tuple[int, ...], is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion_module, "SMALLEST_COMPILED", 0)
    random = torch.Generator().manual_seed(0)
    target = torch.randn(shape, generator=random)
    feature = target + 0.1 * torch.randn(shape, generator=random)
    if len(shape) == 4:
        feature = feature.contiguous(memory_format=torch.channels_last)
    exact = feature.double().requires_grad_()
    expected = (exact - target.double()).square().sum() / target.double().square().sum()
    expected.backward()
    leaf = feature.clone().requires_grad_()
    with fusion(torch.device("cpu")) if is_fused else contextlib.nullcontext():
        error = relative_error(leaf, target)
        error.backward()
    assert float(error) == pytest.approx(float(expected), rel=1e-4)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)
