"""Pixel spaces: the same pictures whatever a network reads them as; black and white are kept to."""

import contextlib

import pytest
import torch

from causal_dfq.config import make_options
from causal_dfq.fusion import fusion
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
    grey = space(mean, std)(torch.zeros_like(values))
    changed = as_picture(space(mean, std).changed(grey, values), mean, std)
    assert torch.allclose(changed, expected, atol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(0.485, 0.229), (0.5071, 0.2675), (0.1307, 0.3081), (0.2, 0.12)])
def test_a_data_sets_own_mean_and_deviation_leave_values_where_they_are(mean: float, std: float) -> None:
    values = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = values.clamp(-mean / std, (1 - mean) / std)
    assert torch.allclose(space(mean, std)(values), expected, atol=1e-6)


def test_without_a_normalization_nothing_is_moved_or_held() -> None:
    values = 100 * torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(PixelSpace(None, 2)(values), values)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_change_has_a_gradient_up_to_black_and_white_and_none_beyond(is_compiled: bool) -> None:
    pixels = space(0.0, 1 / 255)
    # Enough for a formula to be compiled.
    values = (2 * torch.randn(4, 3, 80, 80, generator=torch.Generator().manual_seed(0))).requires_grad_()
    scenes = pixels(torch.randn(4, 3, 80, 80, generator=torch.Generator().manual_seed(1)))
    scenes[0], values.data[0] = 0.0, 0.0
    with fusion(scenes.device) if is_compiled else contextlib.nullcontext():
        changed = pixels.changed(scenes, values)
        (found,) = torch.autograd.grad(changed.square().sum(), values)
    expected = torch.clamp(scenes + pixels.stretch * values, 0.0, 255.0)
    (wanted,) = torch.autograd.grad(expected.square().sum(), values)
    assert torch.allclose(changed, expected, atol=1e-4)
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert 0.1 < float((found == 0).float().mean()) < 0.9
    (on_the_bound,) = torch.autograd.grad(pixels.changed(scenes, values).sum(), values)
    assert (on_the_bound[0] == pixels.stretch).all()


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
