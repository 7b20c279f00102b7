"""Statistics, generator and the picture of samples."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from causal_dfq.causal.graph import Content
from causal_dfq.network.capture import capture
from causal_dfq.synthesis.gallery import draw_grid, sample_grid
from causal_dfq.synthesis.generator import (
    STYLE_SIZE,
    VARIATION_SIZE,
    ContentStyleGenerator,
    FirstBlock,
    initialize,
    mode_seeking_loss,
    style_diversity_loss,
)
from causal_dfq.synthesis.statistics import batch_statistics, running_statistics, statistics_distance
from tests.networks import Residual, trained


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features() -> Tensor:
    values = torch.randn(6, 4, 3, 5, generator=random(), dtype=torch.float64) * 2 + 1
    return values.contiguous(memory_format=torch.channels_last)


def test_batch_statistics_are_mean_and_biased_variance() -> None:
    mean, variance = batch_statistics(features().float())
    torch.testing.assert_close(mean, features().mean((0, 2, 3)).float())
    torch.testing.assert_close(variance, features().var((0, 2, 3), correction=0).float(), rtol=1e-5, atol=1e-5)


def test_batch_statistics_have_the_gradient_of_autograd() -> None:
    weights = torch.randn(2, 4, generator=random(1))
    found, expected = features().float().requires_grad_(), features().float().requires_grad_()
    mean, variance = batch_statistics(found)
    (weights[0] @ mean + weights[1] @ variance).backward()
    (weights[0] @ expected.mean((0, 2, 3)) + weights[1] @ expected.var((0, 2, 3), correction=0)).backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_distance_is_its_formula_in_float64() -> None:
    running_mean, running_variance = torch.tensor([0.5, 1, 1.5, 2]), torch.tensor([1.0, 2, 3, 4])
    values = features()
    mean, deviation = values.mean((0, 2, 3)), values.std((0, 2, 3), correction=0)
    running = running_variance.double().sqrt()
    expected = (((mean - running_mean) / running) ** 2 + (deviation / running - 1) ** 2).mean()
    found = statistics_distance([batch_statistics(values.float())], [(running_mean, running_variance)])
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_distance_is_zero_for_the_running_statistics() -> None:
    values = features().float()
    statistics = [(values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0))]
    assert float(statistics_distance([batch_statistics(values)], statistics)) == pytest.approx(0, abs=1e-6)


def test_running_statistics_are_those_of_the_network() -> None:
    network = trained(Residual())
    found = running_statistics(capture(network, (3, 8, 8)))
    for (mean, variance), norm in zip(found, (network.bn1, network.bn2), strict=True):
        assert torch.equal(mean, norm.running_mean)
        assert torch.equal(variance, norm.running_var)


def made(shape: tuple[int, int, int], bounds: object = None, seed: int = 0) -> ContentStyleGenerator:
    generator = ContentStyleGenerator(10, shape, bounds)  # type: ignore[arg-type]
    initialize(generator, random(seed))
    return generator


def causes(count: int, seed: int = 1) -> tuple[Content, Tensor]:
    labels = torch.arange(count) % 10
    content = Content.of_classes(labels, torch.randn(count, VARIATION_SIZE, generator=random(seed)))
    return content, torch.randn(count, STYLE_SIZE, generator=random(seed + 1))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 97, 65), (3, 224, 224), (3, 8, 8)])
def test_images_have_the_shape_of_the_network(shape: tuple[int, int, int]) -> None:
    assert made(shape)(*causes(4)).shape == (4, *shape)


def test_images_keep_to_the_bounds_of_pixels() -> None:
    low, high = (-0.2, -0.3, -0.4), (0.1, 0.2, 0.3)
    images = made((3, 32, 32), (low, high))(*causes(32))
    torch.testing.assert_close(images.amin((0, 2, 3)), torch.tensor(low))
    torch.testing.assert_close(images.amax((0, 2, 3)), torch.tensor(high))


def test_content_and_style_both_change_the_picture() -> None:
    generator = made((3, 32, 32))
    content, style = causes(32)
    images = generator(content, style)
    other_content, other_style = causes(32, seed=7)
    assert (generator(content, other_style) - images).abs().mean() > 0.1
    assert (generator(Content.of_classes(content.labels, other_content.variation), style) - images).abs().mean() > 0.1
    assert (generator(Content.of_classes(content.labels.flip(0), content.variation), style) - images).abs().mean() > 0.1


def test_repeated_contents_give_the_images_of_contents_one_by_one() -> None:
    generator = made((3, 32, 32))
    repeated = causes(16)[0].repeat(3)
    style = torch.randn(48, STYLE_SIZE, generator=random(5))
    torch.testing.assert_close(
        generator(repeated, style), generator(dataclasses.replace(repeated, times=1), style), rtol=1e-3, atol=1e-3
    )


def test_the_first_block_is_a_styled_block_on_layouts_and_backdrops() -> None:
    block = FirstBlock(5, 4).double()
    style = torch.randn(6, STYLE_SIZE, generator=random(1), dtype=torch.float64)
    layout = torch.randn(2, 3, 4, 4, generator=random(2), dtype=torch.float64)
    backdrop = torch.randn(6, 2, 4, 4, generator=random(3), dtype=torch.float64)
    cotangent = torch.randn(6, 4, 8, 8, generator=random(4), dtype=torch.float64)
    results = []
    for is_split in (True, False):
        inputs = layout.clone().requires_grad_(), backdrop.clone().requires_grad_()
        block.zero_grad()
        if is_split:
            output = block.forward_under_styles(*inputs, style)
        else:
            output = block(torch.cat([inputs[0].repeat(3, 1, 1, 1), inputs[1]], 1), style)
        (output * cotangent).sum().backward()
        results.append((output, *(leaf.grad for leaf in inputs), block.convolution.weight.grad.clone()))
    for split, joined in zip(*results, strict=True):
        torch.testing.assert_close(split, joined)


def test_a_blend_is_laid_out_between_its_classes_and_as_long() -> None:
    generator = made((3, 32, 32))
    seen: list[Tensor] = []
    generator.layout.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    first, second, share = torch.tensor([3, 4]), torch.tensor([8, 4]), torch.tensor([0.25, 0.0])
    variation = torch.randn(2, VARIATION_SIZE, generator=random())
    generator(Content(first, variation, second, share), torch.zeros(2, STYLE_SIZE))
    table = generator.embedding.weight.detach()
    expected = torch.stack([(0.75 * table[3] + 0.25 * table[8]) / (0.75**2 + 0.25**2) ** 0.5, table[4]])
    torch.testing.assert_close(seen[0], torch.cat([expected, variation], 1))


def test_the_layout_does_not_see_the_style() -> None:
    generator = made((3, 32, 32))
    seen: list[Tensor] = []
    generator.layout.register_forward_hook(lambda module, inputs, output: seen.append(output))
    content, style = causes(16)
    generator(content, style)
    generator(content, style + 1)
    assert torch.equal(seen[0], seen[1])


def test_a_seed_makes_the_generator() -> None:
    first, second, other = made((3, 32, 32)), made((3, 32, 32)), made((3, 32, 32), seed=3)
    assert torch.equal(first(*causes(8)), second(*causes(8)))
    assert not torch.equal(first(*causes(8)), other(*causes(8)))


def test_mode_seeking_is_the_ratio_of_distances() -> None:
    first, second = torch.zeros(1, 4), torch.full((1, 4), 3.0)
    loss = mode_seeking_loss((first, second), (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 1.5)), epsilon=0)
    assert float(loss) == pytest.approx(2.0)


def test_style_that_does_not_show_costs_more() -> None:
    styles = torch.randn(2, 5, STYLE_SIZE, generator=random())
    same = torch.randn(1, 5, 3, 8, 8, generator=random()).expand(2, -1, -1, -1, -1)
    different = torch.randn(2, 5, 3, 8, 8, generator=random())
    assert style_diversity_loss(same, styles) > 10 * style_diversity_loss(different, styles)


def test_grid_has_one_row_a_content_and_one_column_a_style() -> None:
    counts: list[int] = []

    def picture(content: Content, styles: Tensor) -> Tensor:
        counts.append(len(styles))
        return (content.labels + styles[:, 0])[:, None, None, None]

    content = Content.of_classes(torch.tensor([10, 20, 30]), torch.zeros(3, 1))
    for batch, calls in ((100, 1), (5, 2), (1, 2)):
        counts.clear()
        grid = sample_grid(picture, content, torch.tensor([[1.0], [2.0]]), batch)
        assert grid.flatten(2)[..., 0].tolist() == [[11, 12], [21, 22], [31, 32]]
        assert len(counts) == calls


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grid_is_written_as_a_picture(tmp_path: Path, channels: int) -> None:
    draw_grid(torch.randn(3, 2, channels, 8, 8), torch.arange(3), None, None, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
