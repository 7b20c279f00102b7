"""Imprints: a natural spectrum, within the bounds, towards what is asked; shifts that keep every pixel's neighbours."""

import pytest
import torch
from torch import Tensor

from causal_dfq.synthesis.imprint import SpectralChange, imprint, natural_amplitude, scenes_within, shifted

BOUNDS = (torch.tensor([-2.0, -1.5, -1.0]).view(1, 3, 1, 1), torch.tensor([2.0, 1.5, 1.0]).view(1, 3, 1, 1))


@pytest.mark.parametrize("size", [(16, 16), (12, 17)])
def test_coefficients_of_unit_variance_give_images_of_a_little_less(size: tuple[int, int]) -> None:
    change = SpectralChange((64, 3, *size))
    assert torch.equal(change(), torch.zeros(64, 3, *size))
    with torch.no_grad():
        change.coefficients.normal_(generator=torch.Generator().manual_seed(0))
    # The half plane holds the frequencies along one axis twice as densely as the whole one does.
    assert 0.7 < float(change().detach().var()) < 1.0


def test_amplitude_falls_as_one_over_the_frequency() -> None:
    amplitude = natural_amplitude(32, 32)
    assert amplitude.shape == (32, 17)
    assert float(amplitude[0, 2] / amplitude[0, 8]) == pytest.approx(4.0)
    assert float(amplitude[3, 4] / amplitude[0, 10]) == pytest.approx(2.0)
    assert torch.equal(amplitude[5], amplitude[-5])


def test_an_imprint_comes_nearer_to_what_the_loss_asks_and_stays_within_bounds() -> None:
    random = torch.Generator().manual_seed(0)
    scenes = scenes_within(4, (3, 16, 16), BOUNDS, random)
    sizes = []

    def loss_of(images: Tensor) -> Tensor:
        sizes.append(images.shape)
        # The mean does not change when an image is shifted or mirrored.
        return (images.mean((2, 3)) - torch.tensor([0.5, -0.5, 0.6])).square().sum()

    found = imprint(scenes, BOUNDS, loss_of, 120, random)
    assert sizes == [(4, 3, 16, 16)] * 120
    assert float(loss_of(found)) < 0.1 * float(loss_of(scenes))
    assert bool((found >= BOUNDS[0]).all())
    assert bool((found <= BOUNDS[1]).all())


def test_the_same_random_stream_gives_the_same_imprint() -> None:
    found = []
    for _ in range(2):
        random = torch.Generator().manual_seed(5)
        scenes = scenes_within(2, (3, 16, 16), BOUNDS, random)
        found.append(imprint(scenes, BOUNDS, lambda images: images[:, :, :8].square().mean(), 4, random))
    assert torch.equal(*found)


def test_shifted_images_are_windows_of_the_mirrored_plane() -> None:
    image = torch.arange(16.0).expand(16, 16).contiguous()[None, None]
    seen = set()
    for seed in range(40):
        moved = shifted(image.expand(1, 1, 16, 16), torch.Generator().manual_seed(seed))
        assert moved.shape == (1, 1, 16, 16)
        row = moved[0, 0, 3]
        seen.add(tuple(row.tolist()))
        # Neighbours differ by one step of the ramp, the mirrored border included.
        assert float((row[1:] - row[:-1]).abs().min()) == 1.0
        assert float((row[1:] - row[:-1]).abs().max()) == 1.0
    assert len(seen) == 6
