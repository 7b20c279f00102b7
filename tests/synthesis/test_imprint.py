"""Imprints: a natural spectrum, within the bounds, towards what is asked; shifts that keep every pixel's neighbours."""

import pytest
import torch
from torch import Tensor

from causal_dfq.synthesis.imprint import (
    Imprint,
    SpectralChange,
    as_looked_at,
    natural_amplitude,
    scenes_within,
    shifted,
)
from causal_dfq.synthesis.pixel_space import PixelSpace

LOWEST, HIGHEST = torch.tensor([-2.0, -1.5, -1.4]), torch.tensor([2.0, 1.5, 1.4])
SPACE = PixelSpace((tuple(LOWEST.tolist()), tuple(HIGHEST.tolist())), 3)


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


def test_an_imprint_comes_nearer_to_what_is_asked_and_stays_within_bounds() -> None:
    scenes = scenes_within(4, (3, 16, 16), SPACE, torch.Generator().manual_seed(0))
    batch = Imprint((4, 3, 16, 16), SPACE)
    batch.begin(scenes)
    assert torch.equal(batch(), scenes)
    optimizer = torch.optim.Adam(batch.parameters(), 0.05)

    def loss() -> Tensor:
        return (batch().mean((2, 3)) - torch.tensor([0.5, -0.5, 0.6])).square().sum()

    before = float(loss().detach())
    for _ in range(80):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    found = batch().detach()
    assert float(loss().detach()) < 0.1 * before
    assert bool((found >= LOWEST.view(1, 3, 1, 1)).all())
    assert bool((found <= HIGHEST.view(1, 3, 1, 1)).all())
    batch.begin(scenes)
    assert torch.equal(batch(), scenes)


def test_the_network_sees_every_pixel_shifted_and_every_other_time_mirrored() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8)
    for iteration in (0, 1):
        shown = as_looked_at(images, iteration, torch.Generator().manual_seed(2))
        assert torch.equal(shown.flatten().sort().values, images.flatten())
        steps = (shown[0, 0, 0, 1:] - shown[0, 0, 0, :-1]).tolist()
        assert steps.count(1.0 if iteration == 0 else -1.0) >= 6


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
