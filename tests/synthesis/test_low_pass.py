"""The filter: what it keeps, and by how much it damps what it does not."""

import math

import pytest
import torch

from causal_dfq.synthesis.low_pass import low_pass


def test_a_flat_image_passes_and_a_wave_is_damped_by_the_gaussian() -> None:
    flat = torch.full((1, 3, 8, 8), 0.7)
    torch.testing.assert_close(low_pass(flat, 0.3), flat)
    # Alternating columns are the highest frequency of their axis: distance 1.
    wave = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    for cutoff in (0.5, 1.0):
        torch.testing.assert_close(low_pass(wave, cutoff), wave * math.exp(-1 / (2 * cutoff**2)))


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_it_keeps_shape_type_and_mean(size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = low_pass(images, 0.5)
    assert (found.shape, found.dtype) == (images.shape, torch.bfloat16)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.float().mean((2, 3)), images.float().mean((2, 3)), rtol=0.02, atol=0.02)
