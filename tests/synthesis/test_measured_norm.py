"""BatchNorm, its statistics and its clipping in one: against the three one after the other."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_dfq.network.capture import capture
from causal_dfq.network.operations import batch_norm_nodes, input_name, with_outputs
from causal_dfq.synthesis.measured_norm import measured_norm, with_statistics
from causal_dfq.synthesis.statistics import batch_statistics
from tests.networks import ALL, trained


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("is_affine", [True, False])
@pytest.mark.parametrize("is_residual", [True, False])
@pytest.mark.parametrize("bounds", [(0.0, math.inf), (-math.inf, math.inf), (0.0, 1.0)])
def test_values_and_gradients_are_their_formula_in_float64(
    bounds: tuple[float, float], is_affine: bool, is_residual: bool
) -> None:
    features = (2 * drawn(4, 3, 5, 6) + 5).contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.1, 0.2, -0.3])) if is_affine else (None, None)
    running = torch.tensor([4.0, 5.0, 6.0]), torch.tensor([1.0, 4.0, 9.0])
    residual = drawn(4, 3, 5, 6, seed=4).requires_grad_() if is_residual else None
    cotangents = drawn(4, 3, 5, 6, seed=1), drawn(3, seed=2), drawn(3, seed=3)

    leaf = features.clone().requires_grad_()
    results = measured_norm(leaf, residual, weight, bias, *running, 1e-5, bounds)
    torch.autograd.backward(results, cotangents)

    exact = features.double().requires_grad_()
    scale, shift = (1.0, 0.0) if weight is None else (weight.view(3, 1, 1).double(), bias.view(3, 1, 1).double())
    mean, deviation = running[0].view(3, 1, 1), (running[1].double() + 1e-5).sqrt().view(3, 1, 1)
    normalized = (exact - mean) / deviation * scale + shift
    exact_residual = torch.zeros(4, 3, 5, 6, dtype=torch.float64) if residual is None else residual.detach().double()
    exact_residual.requires_grad_()
    expected = (normalized + exact_residual).clamp(*bounds), exact.mean((0, 2, 3)), exact.var((0, 2, 3), correction=0)
    torch.autograd.backward(expected, [cotangent.double() for cotangent in cotangents])

    for found, value in zip(results, expected, strict=True):
        torch.testing.assert_close(found.double(), value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
    if residual is not None:
        torch.testing.assert_close(residual.grad.double(), exact_residual.grad, rtol=1e-4, atol=1e-5)
    assert leaf.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("arithmetic")
def test_bfloat16_features_stay_so_and_their_statistics_are_float32() -> None:
    features = drawn(4, 3, 5, 6).to(torch.bfloat16).requires_grad_()
    result, mean, variance = measured_norm(
        features, None, None, None, torch.zeros(3), torch.ones(3), 1e-5, (0.0, math.inf)
    )
    (result.float().sum() + mean.sum() + variance.sum()).backward()
    assert (result.dtype, mean.dtype, variance.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert features.grad.dtype == torch.bfloat16
    torch.testing.assert_close(mean, features.detach().float().mean((0, 2, 3)), rtol=1e-2, atol=1e-3)


class Rows(nn.Module):
    """BatchNorm of rows, and one BatchNorm straight after another."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Linear(3 * 64, 6)
        self.norms = nn.Sequential(nn.BatchNorm1d(6), nn.BatchNorm1d(6))
        self.fc = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norms(self.flat(images.flatten(1)))
        # Read twice: what lies before the ReLU is needed too.
        return self.fc(functional.relu(features) + features)


class Tokens(nn.Module):
    """Norms that see the tokens of all images in a row, as those of LeViT do, after one that sees images."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 6, 2, 2), nn.BatchNorm2d(6)
        self.norms = nn.Sequential(nn.BatchNorm1d(6), nn.BatchNorm1d(6))
        self.fc = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.patches(images)).flatten(2).transpose(1, 2)
        tokens = self.norms(tokens.flatten(0, 1)).reshape_as(tokens)
        return self.fc(tokens.mean(1))


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("network", [*ALL, Rows, Tokens])
def test_the_view_gives_the_logits_and_the_statistics_of_every_norm(network: type) -> None:
    captured = capture(trained(network()), (3, 8, 8))
    names = [input_name(node) for node in batch_norm_nodes(captured.graph)]
    images = drawn(6, 3, 8, 8).requires_grad_()
    expected_logits, features = with_outputs(captured, names)(images)
    expected = [batch_statistics(values) for values in features]
    logits, statistics, middle = with_statistics(captured)(images)
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(statistics, expected)
    of_images = [values for values in features if len(values) == len(images)] or [logits]
    torch.testing.assert_close(middle, of_images[len(of_images) // 2])
    both = [
        torch.autograd.grad(outputs.square().sum() + sum(m.sum() + v.sum() for m, v in found), images)[0]
        for outputs, found in ((logits, statistics), (expected_logits, expected))
    ]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)
