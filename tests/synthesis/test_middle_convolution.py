"""The convolution by taps against torch's own, cropped."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from causal_dfq.synthesis.middle_convolution import convolve_middle


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(("channels", "size"), [(3, (6, 5)), (1, (4, 7)), (3, (3, 3))])
def test_values_and_gradients_are_those_of_the_cropped_convolution(channels: int, size: tuple[int, int]) -> None:
    features = drawn(4, 5, 8, 9, seed=0).contiguous(memory_format=torch.channels_last)
    kernel, cotangent = drawn(channels, 5, 3, 3, seed=1), drawn(4, channels, *size, seed=2)
    leaves = features.clone().requires_grad_(), kernel.clone().requires_grad_()
    result = convolve_middle(*leaves, size)
    result.backward(cotangent)

    exact = features.double().requires_grad_(), kernel.double().requires_grad_()
    top, left = (8 - size[0]) // 2, (9 - size[1]) // 2
    expected = functional.conv2d(*exact, padding=1)[:, :, top : top + size[0], left : left + size[1]]
    expected.backward(cotangent.double())

    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
    for leaf, reference in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)
    assert leaves[0].grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("arithmetic")
def test_bfloat16_features_and_a_float32_kernel_keep_their_types() -> None:
    features, kernel = drawn(2, 8, 6, 6, seed=0).to(torch.bfloat16).requires_grad_(), drawn(3, 8, 3, 3, seed=1)
    kernel.requires_grad_()
    result = convolve_middle(features, kernel, (4, 4))
    result.square().sum().backward()
    assert (result.dtype, features.grad.dtype, kernel.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    expected = functional.conv2d(features.detach().float(), kernel.detach(), padding=1)[:, :, 1:5, 1:5]
    torch.testing.assert_close(result, expected, rtol=0.05, atol=0.1)
