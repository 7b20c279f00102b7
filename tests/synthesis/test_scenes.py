"""Procedural scenes: their scale, their variety, and that a seed fixes them."""

import pytest
import torch

from causal_dfq.synthesis import scenes as scenes_module
from causal_dfq.synthesis.imprint import shifted
from causal_dfq.synthesis.scenes import draw_scenes, generator_on, hide_behind


def scenes(count: int, shape: tuple[int, int, int] = (3, 32, 32), seed: int = 0) -> torch.Tensor:
    return draw_scenes(count, shape, torch.Generator().manual_seed(seed))


def test_a_seed_fixes_the_scenes() -> None:
    assert torch.equal(scenes(4), scenes(4))
    assert not torch.equal(scenes(4), scenes(4, seed=1))


def test_scenes_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    together = scenes(7)
    for values in (1, 3 * scenes_module.SHAPES * 32 * 32):
        monkeypatch.setattr(scenes_module, "_VALUES_AT_ONCE", values)
        assert torch.equal(scenes(7), together)


def test_the_topmost_shape_is_the_last_that_covers_a_pixel() -> None:
    # A disc, a box and a triangle around one centre, in units of their radius: (count, shapes, side).
    side = torch.tensor([-1.2, -0.9, 0.0, 0.9, 1.2]).expand(1, 3, -1)
    nothing = torch.zeros(1, 3, 5)
    top = scenes_module._last_that_covers(side, nothing, nothing, side)[0]
    assert top.tolist() == [
        [0, 0, 0, 0, 0],
        [0, 3, 3, 3, 0],
        [0, 1, 3, 1, 0],
        [0, 0, 3, 0, 0],
        [0, 0, 0, 0, 0],
    ]


def test_a_generator_on_the_right_device_is_used_itself() -> None:
    random = torch.Generator().manual_seed(4)
    assert generator_on(torch.device("cpu"), random) is random


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 40, 25), (4, 64, 64)])
def test_pixels_are_normalized(shape: tuple[int, int, int]) -> None:
    images = scenes(200, shape)
    assert images.shape == (200, *shape)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert float(images.mean()) == pytest.approx(0, abs=0.15)
    assert float(images.std()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 32, 1), (3, 2, 2), (1, 1, 1), (20, 1, 1)])
def test_a_side_of_one_is_a_line(shape: tuple[int, int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    scenes = draw_scenes(8, shape, random)
    assert scenes.shape == (8, *shape)
    assert bool(scenes.isfinite().all())
    for _ in range(8):
        moved = shifted(scenes, random)
        assert moved.shape == scenes.shape
        assert moved.unique().numel() <= scenes.unique().numel()


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


def test_hidden_images_are_between_image_and_scene_and_show_half_of_it() -> None:
    images, behind = torch.ones(200, 3, 32, 32), -torch.ones(200, 3, 32, 32)
    mixed = hide_behind(images, behind, torch.Generator().manual_seed(0))
    assert float(mixed.abs().max()) <= 1
    assert float(mixed.mean()) == pytest.approx(0, abs=0.1)
    # Most pixels are of one or the other, and which one differs by place and by image.
    assert float((mixed.abs() > 0.9).float().mean()) > 0.5
    assert float(mixed.std((1, 2, 3)).median()) > 0.5
    assert float(mixed.mean((1, 2, 3)).std()) > 0.3
