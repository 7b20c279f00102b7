"""Procedural scenes: their scale, their variety, and that a seed fixes them."""

import pytest
import torch

from causal_dfq.synthesis.scenes import draw_scenes


def scenes(count: int, shape: tuple[int, int, int] = (3, 32, 32), seed: int = 0) -> torch.Tensor:
    return draw_scenes(count, shape, torch.Generator().manual_seed(seed))


def test_a_seed_fixes_the_scenes() -> None:
    assert torch.equal(scenes(4), scenes(4))
    assert not torch.equal(scenes(4), scenes(4, seed=1))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 40, 25), (4, 64, 64)])
def test_pixels_are_normalized(shape: tuple[int, int, int]) -> None:
    images = scenes(200, shape)
    assert images.shape == (200, *shape)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert float(images.mean()) == pytest.approx(0, abs=0.15)
    assert float(images.std()) == pytest.approx(1, abs=0.2)


def test_images_differ_from_each_other() -> None:
    images = scenes(64).flatten(1)
    distance = torch.cdist(images, images).div(images.shape[1] ** 0.5)
    assert float(distance[~torch.eye(64, dtype=torch.bool)].min()) > 0.4


def test_neighbours_are_alike_and_far_pixels_are_not() -> None:
    images = scenes(200)
    near = (images[..., 1:] - images[..., :-1]).square().mean()
    far = (images[..., 16:] - images[..., :-16]).square().mean()
    assert float(near) < 0.5 * float(far)


def test_power_falls_with_frequency_as_in_natural_images() -> None:
    brightness = scenes(400, (1, 64, 64))[:, 0]
    power = torch.fft.rfft2(brightness).abs().square().mean(0)
    frequencies = torch.tensor([2, 4, 8, 16])
    slope = torch.log(power[0, frequencies[-1]] / power[0, frequencies[0]]) / torch.log(torch.tensor(8.0))
    assert -3 < float(slope) < -1
