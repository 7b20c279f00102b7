"""Procedural scenes: opaque shapes before a cloudy background, drawn from random numbers alone.

The generator's images show what each class needs; scenes show edges, shading and textures in every
arrangement, with no class at all. The pre-trained network's answer to them teaches the quantized one the
same function away from the class centres. [ours], after the dead leaves of Baradad et al., "Learning to see
by looking at noise" (NeurIPS 2021): natural images share their statistics of edges and scales.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SHAPES = 28
_SMALLEST_RADIUS, _LARGEST_RADIUS = 0.05, 0.45
# Natural colours vary more in brightness than in hue: shares of the standard deviation.
_BRIGHTNESS, _HUE = 0.85, 0.5
_CLOUD_CONTRAST = 0.5
_TEXTURE_CONTRAST = 0.6
_OUTLINE_SLOPE, _OUTLINE_SHARPNESS, _LARGEST_THRESHOLD = 2.0, 6.0, 0.8
_LARGEST_FREQUENCY = 14.0
_HALF_BOX = 0.85
# Of the shapes of several scenes, pixel by pixel: few operators for small scenes, little memory for large ones.
_VALUES_AT_ONCE = 2**22


def generator_on(device: torch.device, random: torch.Generator) -> torch.Generator:
    """A generator of a device's own: `random` itself where it is on that device, else a new one that it seeds."""
    if random.device.type == device.type:
        return random
    seed = torch.randint(2**62, (), generator=random, device=random.device)
    return torch.Generator(device).manual_seed(int(seed))


def draw_scenes(count: int, image_shape: tuple[int, int, int], random: torch.Generator) -> Tensor:
    """Scenes (count, C, H, W) on the device of `random`: normalized pixels, mean about 0 and deviation about 1.

    Discs, boxes and triangles, their radii after a power law, lie over each other at random places and
    angles; each has a colour, a linear shading and a sinusoidal texture. Half of the scenes are softened.
    """
    channels, height, width = image_shape
    device = random.device
    rows = (torch.arange(height, device=device) + 0.5) / height
    columns = (torch.arange(width, device=device) + 0.5) / width
    centre = torch.rand(2, count, SHAPES, generator=random, device=device)
    top = _topmost_shape(centre, rows, columns, random)
    is_background = top == 0
    down = rows.view(1, -1, 1) - _pick(_with_background(centre[0]), top)
    right = columns.view(1, 1, -1) - _pick(_with_background(centre[1]), top)
    colour = _colours((count, SHAPES + 1), channels, random)
    texture = _colours((count, SHAPES + 1), channels, random)
    wave = _waves(down, right, top, random)
    shading = torch.rand(2, count, SHAPES + 1, generator=random, device=device) * 2 - 1
    shade = _pick(shading[0], top) * down + _pick(shading[1], top) * right
    scenes = torch.stack(
        [
            _pick(colour[channel], top) + shade + _TEXTURE_CONTRAST * wave * _pick(texture[channel], top)
            for channel in range(channels)
        ],
        1,
    )
    slope = 0.8 + torch.rand(count, 1, 1, 1, generator=random, device=device)
    clouds = _CLOUD_CONTRAST * _clouds((count, *image_shape), slope, random)
    clouds = clouds + _colours((count, 1), channels, random).permute(1, 0, 2)[..., None]
    scenes = torch.where(is_background[:, None], clouds, scenes)
    is_soft = torch.rand(count, 1, 1, 1, generator=random, device=device) < 0.5
    return torch.where(is_soft, _soften(scenes), scenes).contiguous(memory_format=torch.channels_last)


def hide_behind(images: Tensor, scenes: Tensor, random: torch.Generator) -> Tensor:
    """Images (N, C, H, W) of which parts, of random outline and size, are replaced by scenes (N, C, H, W)."""
    count, _, height, width = images.shape
    device = images.device
    random = generator_on(device, random)
    slope = torch.full((count, 1, 1, 1), _OUTLINE_SLOPE, device=device)
    outline = _clouds((count, 1, height, width), slope, random)
    threshold = _LARGEST_THRESHOLD * (2 * torch.rand(count, 1, 1, 1, generator=random, device=device) - 1)
    visible = torch.sigmoid(_OUTLINE_SHARPNESS * (outline - threshold))
    return torch.lerp(scenes, images, visible)


def _topmost_shape(centre: Tensor, rows: Tensor, columns: Tensor, random: torch.Generator) -> Tensor:
    """(count, H, W): the number from 1 of the shape in front, 0 where the background shows."""
    _, count, shapes = centre.shape
    uniform = torch.rand(3, count, shapes, generator=random, device=random.device)
    # Density of radii as 1 / r^2 between the smallest and the largest: the same mix at every zoom.
    inverse = 1 / _LARGEST_RADIUS + uniform[0] * (1 / _SMALLEST_RADIUS - 1 / _LARGEST_RADIUS)
    radius = 1 / inverse
    angle, aspect = 2 * math.pi * uniform[1], 0.4 + 0.6 * uniform[2]
    # Coordinates along the axes of a shape, in units of its radius, are sums of these, (count, shapes, side) each.
    unit = 1 / radius
    c, s, stretch = (angle.cos() * unit)[..., None], (angle.sin() * unit)[..., None], (1 / aspect)[..., None]
    down, right = rows - centre[0, ..., None], columns - centre[1, ..., None]
    sums = (right * c, down * s, -right * s * stretch, down * c * stretch)
    scenes_at_once = max(1, _VALUES_AT_ONCE // (shapes * len(rows) * len(columns)))
    parts = zip(*(part.split(scenes_at_once) for part in sums), strict=True)
    return torch.cat([_last_that_covers(*part) for part in parts])


def _last_that_covers(right_along: Tensor, down_along: Tensor, right_across: Tensor, down_across: Tensor) -> Tensor:
    """(count, H, W) of the sums (count, shapes, side) that coordinates are made of: the last shape's number, or 0."""
    # In bytes, as they are many.
    numbers = torch.arange(1, right_along.shape[1] + 1, dtype=torch.uint8, device=right_along.device)
    top = numbers.new_zeros(())
    # Discs, boxes and triangles in turn.
    for kind, is_inside in enumerate((_is_in_disc, _is_in_box, _is_in_triangle)):
        along = right_along[:, kind::3, None, :] + down_along[:, kind::3, :, None]
        across = right_across[:, kind::3, None, :] + down_across[:, kind::3, :, None]
        covering = torch.where(is_inside(along, across), numbers[kind::3, None, None], 0)
        top = torch.maximum(top, covering.amax(1))
    return top.long()


def _is_in_disc(along: Tensor, across: Tensor) -> Tensor:
    return along.square() + across.square() < 1


def _is_in_box(along: Tensor, across: Tensor) -> Tensor:
    return torch.maximum(along.abs(), across.abs()) < _HALF_BOX


def _is_in_triangle(along: Tensor, across: Tensor) -> Tensor:
    return (across > -1) & (2 * along.abs() + across < 1)


def _with_background(values: Tensor) -> Tensor:
    """(count, SHAPES) -> (count, SHAPES + 1): the background's entry, 0.5, comes first."""
    return functional.pad(values, (1, 0), value=0.5)


def _pick(values: Tensor, top: Tensor) -> Tensor:
    """Each pixel's entry of (count, SHAPES + 1): (count, H, W)."""
    return values.gather(1, top.flatten(1)).view(top.shape)


def _colours(size: tuple[int, int], channels: int, random: torch.Generator) -> Tensor:
    """(channels, *size): brightness, which all channels share, plus hue."""
    brightness = torch.randn(size, generator=random, device=random.device)
    hue = torch.randn(channels, *size, generator=random, device=random.device)
    return _BRIGHTNESS * brightness + _HUE * hue


def _waves(down: Tensor, right: Tensor, top: Tensor, random: torch.Generator) -> Tensor:
    """(count, H, W): each shape's sinusoid of its own direction, frequency and amplitude."""
    uniform = torch.rand(3, len(top), SHAPES + 1, generator=random, device=random.device)
    frequency = 2 * math.pi * (2 + (_LARGEST_FREQUENCY - 2) * uniform[0])
    angle = 2 * math.pi * uniform[1]
    phase = _pick(frequency * angle.cos(), top) * right + _pick(frequency * angle.sin(), top) * down
    return _pick(uniform[2].square(), top) * phase.sin()


def _clouds(size: tuple[int, int, int, int], slope: Tensor, random: torch.Generator) -> Tensor:
    """(N, C, H, W) of mean 0 and deviation 1 an image: noise whose amplitude falls as 1 / f^slope, (N, 1, 1, 1)."""
    count, _, height, width = size
    device = random.device
    vertical = torch.fft.fftfreq(height, device=device)[:, None]
    horizontal = torch.fft.rfftfreq(width, device=device)
    frequency = (vertical.square() + horizontal.square()).sqrt().clamp_min(1 / max(height, width))
    brightness = torch.randn(count, 1, height, width, generator=random, device=device)
    hue = torch.randn(size, generator=random, device=device)
    noise = _BRIGHTNESS * brightness + _HUE * hue
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency**slope, s=(height, width))
    filtered -= filtered.mean((2, 3), keepdim=True)
    # A picture of one pixel has no clouds.
    deviation = filtered.std((1, 2, 3), correction=min(1, filtered[0].numel() - 1), keepdim=True)
    filtered /= deviation.clamp_min(torch.finfo(filtered.dtype).tiny)
    return filtered


def _soften(scenes: Tensor) -> Tensor:
    """A 3x3 binomial blur; the border is reflected, and repeated where there is nothing behind it."""
    channels = scenes.shape[1]
    row = torch.tensor([0.25, 0.5, 0.25], device=scenes.device)
    kernel = (row[:, None] * row).expand(channels, 1, 3, 3).contiguous()
    has_neighbours = min(scenes.shape[2:]) > 1
    padded = functional.pad(scenes, (1, 1, 1, 1), mode="reflect" if has_neighbours else "replicate")
    return torch.conv2d(padded, kernel, groups=channels)
