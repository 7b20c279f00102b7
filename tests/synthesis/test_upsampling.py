"""The short way gives what upsampling and convolution give, and the same gradients."""

import pytest
import torch
from torch.nn import functional

from causal_dfq.synthesis.upsampling import convolve_parities, interleave


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (9, 9)])
def test_values_and_gradients_are_those_of_upsampling_then_convolving(size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(3, 6, *size, generator=random, dtype=torch.float64)
    weight = torch.randn(5, 6, 3, 3, generator=random, dtype=torch.float64)
    cotangent = torch.randn(3, 5, 2 * size[0], 2 * size[1], generator=random, dtype=torch.float64)
    results = []
    for convolve in (
        lambda x, w: interleave(convolve_parities(x, w)),
        lambda x, w: functional.conv2d(functional.interpolate(x, scale_factor=2.0, mode="nearest"), w, padding=1),
    ):
        leaves = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
        output = convolve(*leaves)
        (output * cotangent).sum().backward()
        results.append((output, *(leaf.grad for leaf in leaves)))
    for short, long in zip(*results, strict=True):
        torch.testing.assert_close(short, long)


def test_the_result_lies_in_channels_last() -> None:
    features = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    parities = convolve_parities(features, torch.randn(6, 8, 3, 3))
    assert interleave(parities).is_contiguous(memory_format=torch.channels_last)
