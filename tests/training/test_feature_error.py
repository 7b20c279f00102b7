"""The relative error and its gradient against float64, with and without compilation."""

import contextlib

import pytest
import torch

from causal_dfq import fusion as fusion_module
from causal_dfq.fusion import fusion
from causal_dfq.training.feature_error import relative_error


def test_relative_error_and_its_gradient_are_their_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_module, "SMALLEST_COMPILED", 0)
    random = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4, 4), (2, 5))
    targets = [torch.randn(shape, generator=random) for shape in shapes]
    features = [target + 0.1 * torch.randn(target.shape, generator=random) for target in targets]
    features[0] = features[0].contiguous(memory_format=torch.channels_last)
    exact = [feature.double().requires_grad_() for feature in features]
    expected = (
        sum((f - t.double()).square().sum() / t.double().square().sum() for f, t in zip(exact, targets, strict=True))
        / 2
    )
    torch.autograd.backward([expected])
    for is_fused in (False, True):
        leaves = [feature.clone().requires_grad_() for feature in features]
        with fusion(torch.device("cpu")) if is_fused else contextlib.nullcontext():
            error = relative_error(leaves, targets)
            error.backward()
        assert float(error) == pytest.approx(float(expected), rel=1e-4)
        for leaf, reference in zip(leaves, exact, strict=True):
            torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=1e-4, atol=1e-7)
