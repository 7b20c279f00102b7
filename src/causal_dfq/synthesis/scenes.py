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


def draw_scenes(count: int, image_shape: tuple[int, int, int], random: torch.Generator) -> Tensor:
    """Scenes (count, C, H, W) on the CPU: normalized pixels, mean about 0 and deviation about 1.

    Discs, boxes and triangles, their radii after a power law, lie over each other at random places and
    angles; each has a colour, a linear shading and a sinusoidal texture. Half of the scenes are softened.
    """
    channels, height, width = image_shape
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    centre = torch.rand(2, count, SHAPES, generator=random)
    top = _topmost_shape(centre, rows, columns, random)
    is_background = top == 0
    down = rows.view(1, -1, 1) - _pick(_with_background(centre[0]), top)
    right = columns.view(1, 1, -1) - _pick(_with_background(centre[1]), top)
    colour = _colours((count, SHAPES + 1), channels, random)
    texture = _colours((count, SHAPES + 1), channels, random)
    wave = _waves(down, right, top, random)
    shading = torch.rand(2, count, SHAPES + 1, generator=random) * 2 - 1
    shade = _pick(shading[0], top) * down + _pick(shading[1], top) * right
    scenes = torch.stack(
        [
            _pick(colour[channel], top) + shade + _TEXTURE_CONTRAST * wave * _pick(texture[channel], top)
            for channel in range(channels)
        ],
        1,
    )
    slope = 0.8 + torch.rand(count, 1, 1, 1, generator=random)
    clouds = _CLOUD_CONTRAST * _clouds((count, *image_shape), slope, random)
    clouds = clouds + _colours((count, 1), channels, random).permute(1, 0, 2)[..., None]
    scenes = torch.where(is_background[:, None], clouds, scenes)
    is_soft = torch.rand(count, 1, 1, 1, generator=random) < 0.5
    return torch.where(is_soft, _soften(scenes), scenes).contiguous(memory_format=torch.channels_last)


def hide_behind(images: Tensor, scenes: Tensor, random: torch.Generator) -> Tensor:
    """Images (N, C, H, W) of which parts, of random outline and size, are replaced by scenes (N, C, H, W)."""
    count, _, height, width = images.shape
    outline = _clouds((count, 1, height, width), torch.full((count, 1, 1, 1), _OUTLINE_SLOPE), random)
    threshold = _LARGEST_THRESHOLD * (2 * torch.rand(count, 1, 1, 1, generator=random) - 1)
    visible = torch.sigmoid(_OUTLINE_SHARPNESS * (outline - threshold)).to(images.device)
    return torch.lerp(scenes, images, visible)


def _topmost_shape(centre: Tensor, rows: Tensor, columns: Tensor, random: torch.Generator) -> Tensor:
    """(count, H, W): the number from 1 of the shape in front, 0 where the background shows."""
    _, count, shapes = centre.shape
    uniform = torch.rand(3, count, shapes, generator=random)
    # Density of radii as 1 / r^2 between the smallest and the largest: the same mix at every zoom.
    inverse = 1 / _LARGEST_RADIUS + uniform[0] * (1 / _SMALLEST_RADIUS - 1 / _LARGEST_RADIUS)
    radius = 1 / inverse
    angle, aspect = 2 * math.pi * uniform[1], 0.4 + 0.6 * uniform[2]
    cosine, sine = angle.cos(), angle.sin()
    top = torch.zeros(count, len(rows), len(columns), dtype=torch.int64)
    for shape in range(shapes):
        down = rows - centre[0, :, shape, None]
        right = columns - centre[1, :, shape, None]
        unit = 1 / radius[:, shape, None]
        c, s = cosine[:, shape, None] * unit, sine[:, shape, None] * unit
        stretch = 1 / aspect[:, shape, None]
        # Coordinates along the axes of the shape, in units of its radius: (count, H, W) each.
        along = (right * c)[:, None, :] + (down * s)[:, :, None]
        across = (-right * s * stretch)[:, None, :] + (down * c * stretch)[:, :, None]
        if shape % 3 == 0:
            inside = along.square() + across.square() < 1
        elif shape % 3 == 1:
            inside = torch.maximum(along.abs(), across.abs()) < 0.85
        else:
            inside = (across > -1) & (2 * along.abs() + across < 1)
        top = torch.where(inside, shape + 1, top)
    return top


def _with_background(values: Tensor) -> Tensor:
    """(count, SHAPES) -> (count, SHAPES + 1): the background's entry, 0.5, comes first."""
    return functional.pad(values, (1, 0), value=0.5)


def _pick(values: Tensor, top: Tensor) -> Tensor:
    """Each pixel's entry of (count, SHAPES + 1): (count, H, W)."""
    return values.gather(1, top.flatten(1)).view(top.shape)


def _colours(size: tuple[int, int], channels: int, random: torch.Generator) -> Tensor:
    """(channels, *size): brightness, which all channels share, plus hue."""
    brightness = torch.randn(size, generator=random)
    hue = torch.randn(channels, *size, generator=random)
    return _BRIGHTNESS * brightness + _HUE * hue


def _waves(down: Tensor, right: Tensor, top: Tensor, random: torch.Generator) -> Tensor:
    """(count, H, W): each shape's sinusoid of its own direction, frequency and amplitude."""
    uniform = torch.rand(3, len(top), SHAPES + 1, generator=random)
    frequency = 2 * math.pi * (2 + (_LARGEST_FREQUENCY - 2) * uniform[0])
    angle = 2 * math.pi * uniform[1]
    phase = _pick(frequency * angle.cos(), top) * right + _pick(frequency * angle.sin(), top) * down
    return _pick(uniform[2].square(), top) * phase.sin()


def _clouds(size: tuple[int, int, int, int], slope: Tensor, random: torch.Generator) -> Tensor:
    """(N, C, H, W) of mean 0 and deviation 1 an image: noise whose amplitude falls as 1 / f^slope, (N, 1, 1, 1)."""
    count, _, height, width = size
    vertical = torch.fft.fftfreq(height)[:, None]
    horizontal = torch.fft.rfftfreq(width)
    frequency = (vertical.square() + horizontal.square()).sqrt().clamp_min(1 / max(height, width))
    brightness = torch.randn(count, 1, height, width, generator=random)
    hue = torch.randn(size, generator=random)
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
    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row).expand(channels, 1, 3, 3).contiguous()
    has_neighbours = min(scenes.shape[2:]) > 1
    padded = functional.pad(scenes, (1, 1, 1, 1), mode="reflect" if has_neighbours else "replicate")
    return torch.conv2d(padded, kernel, groups=channels)
