"""Pixel spaces: the same pictures whatever a network reads them as; black and white are kept to."""

import pytest
import torch

from causal_dfq.config import make_options
from causal_dfq.synthesis.imprint import Imprint, scenes_within
from causal_dfq.synthesis.pixel_space import PixelSpace


def space(mean: float, std: float, channels: int = 3) -> PixelSpace:
    shape = (channels, 8, 8)
    return PixelSpace(make_options(input_shape=shape, mean=(mean,) * channels, std=(std,) * channels).pixel_bounds, 3)


def as_picture(values: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    return values * std + mean


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.0, 1 / 255), (0.5, 0.5), (124 / 255, 1 / 255)])
def test_the_same_pictures_reach_networks_that_read_other_values(mean: float, std: float) -> None:
    values = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = as_picture(space(mean, std)(values), mean, std)
    expected = (0.45 + 0.25 * values).clamp(0, 1)
    assert torch.allclose(found, expected, atol=1e-5)
    change = space(mean, std).change(values) * std
    assert torch.allclose(change, 0.25 * values, atol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(0.485, 0.229), (0.5071, 0.2675), (0.1307, 0.3081), (0.2, 0.12)])
def test_a_data_sets_own_mean_and_deviation_leave_values_where_they_are(mean: float, std: float) -> None:
    values = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = values.clamp(-mean / std, (1 - mean) / std)
    assert torch.allclose(space(mean, std)(values), expected, atol=1e-6)


def test_without_a_normalization_nothing_is_moved_or_held() -> None:
    values = 100 * torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(PixelSpace(None, 2)(values), values)


def test_scenes_and_imprints_of_a_network_that_reads_bytes_are_those_of_one_that_reads_fractions() -> None:
    pictures = []
    for std in (1.0, 1 / 255):
        pixels = space(0.0, std)
        scenes = scenes_within(4, (3, 16, 16), pixels, torch.Generator().manual_seed(3))
        imprint = Imprint((4, 3, 16, 16), pixels)
        imprint.begin(scenes)
        with torch.no_grad():
            imprint.change.coefficients.normal_(generator=torch.Generator().manual_seed(4))
        pictures.append(imprint().detach() * std)
    assert torch.allclose(*pictures, atol=1e-5)
    # Neither dark nor pale, and with some contrast.
    assert 0.4 < float(pictures[0].mean()) < 0.5
    assert float(pictures[0].std()) > 0.2
