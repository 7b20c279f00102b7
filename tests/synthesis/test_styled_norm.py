"""The generator's normalization, style and activation in one: against the formula in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from causal_dfq.synthesis.styled_norm import styled_norm


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("arithmetic")
def test_values_and_gradients_are_their_formula_in_float64() -> None:
    features = (3 * drawn(4, 5, 6, 3, seed=0) - 2).contiguous(memory_format=torch.channels_last)
    scale, shift = 1 + 0.5 * drawn(4, 5, seed=1), drawn(4, 5, seed=2)
    cotangent = drawn(4, 5, 6, 3, seed=3)
    leaves = [tensor.clone().requires_grad_() for tensor in (features, scale, shift)]
    result = styled_norm(*leaves)
    result.backward(cotangent)

    exact = [tensor.double().requires_grad_() for tensor in (features, scale, shift)]
    mean, variance = exact[0].mean((0, 2, 3), keepdim=True), exact[0].var((0, 2, 3), correction=0, keepdim=True)
    normalized = (exact[0] - mean) / (variance + 1e-5).sqrt()
    expected = functional.leaky_relu(normalized * exact[1][:, :, None, None] + exact[2][:, :, None, None], 0.2)
    expected.backward(cotangent.double())

    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
    for leaf, reference in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert leaves[0].grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("arithmetic")
def test_types_are_kept() -> None:
    features, scale, shift = (
        tensor.to(torch.bfloat16).requires_grad_()
        for tensor in (drawn(2, 3, 4, 4, seed=0), drawn(2, 3, seed=1), drawn(2, 3, seed=2))
    )
    result = styled_norm(features, scale, shift)
    result.float().square().sum().backward()
    assert result.dtype == torch.bfloat16
    assert [tensor.grad.dtype for tensor in (features, scale, shift)] == [torch.bfloat16] * 3
