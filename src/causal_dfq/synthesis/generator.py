"""The content-style-decoupled generator."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_dfq.causal.graph import Content
from causal_dfq.synthesis.middle_convolution import convolve_middle
from causal_dfq.synthesis.pixel_space import PixelBounds, PixelSpace
from causal_dfq.synthesis.styled_norm import SLOPE, styled_norm
from causal_dfq.synthesis.upsampling import convolve_parities, interleave

VARIATION_SIZE = 64
STYLE_SIZE = 32
_SMALLEST_SIDE = 7
_CHANNELS = (96, 64, 32, 32, 24, 16)
_STYLE_CHANNELS = 16
# Zero padding marks the border of a feature map: images are cut out of a larger one.
_MARGIN = 2


class StyledBlock(nn.Module):
    """Upsampling by two, 3x3 convolution, normalization, then scale and shift of each channel by style."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.style = nn.Linear(STYLE_SIZE, 2 * channels)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """(N, in_channels, H, W), (N, STYLE_SIZE) -> (N, channels, 2 H, 2 W)."""
        return self.apply_style(convolve_parities(features, self.convolution.weight), style)

    def apply_style(self, parities: Tensor, style: Tensor) -> Tensor:
        """What follows the convolution; (N, 4 channels, H + 1, W + 1) of `convolve_parities`."""
        scale, shift = self.style(style).chunk(2, 1)
        return styled_norm(interleave(parities), 1 + scale, shift)


class _AddToEachStyle(torch.autograd.Function):
    """(M N, ...) + (N, ...) for each of M styles. Summed by addition: torch's sum over M takes twenty times as long."""

    @staticmethod
    def forward(ctx: Any, by_style: Tensor, of_all: Tensor) -> Tensor:
        ctx.contents = len(of_all)
        total: Tensor = by_style.unflatten(0, (-1, len(of_all))) + of_all
        return total.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        by_style: list[Tensor] = list(gradients[0].split(ctx.contents))
        return gradients[0], functools.reduce(torch.add, by_style)


class FirstBlock(StyledBlock):
    """A styled block whose input is what content laid out and, below it, style's backdrop.

    The convolution of a layout is the same under every style: it is made once.
    """

    def forward_under_styles(self, layout: Tensor, backdrop: Tensor, style: Tensor) -> Tensor:
        """Layouts (N, A, H, W), backdrops (M N, B, H, W) and styles (M N, STYLE_SIZE) -> (M N, channels, 2 H, 2 W)."""
        of_layout, of_backdrop = self.convolution.weight.split([layout.shape[1], backdrop.shape[1]], 1)
        by_style, of_all = convolve_parities(backdrop, of_backdrop), convolve_parities(layout, of_layout)
        parities: Tensor = _AddToEachStyle.apply(by_style, of_all)
        return self.apply_style(parities, style)


class ContentStyleGenerator(nn.Module):
    """G(C, S): content lays out a coarse map; style adds a coarse backdrop and sets colour and texture.

    The class and the variation inside it reach the image only through the first map, style only through
    the backdrop and the channels' scales and shifts. [paper] that content and style are decoupled;
    [ours] this architecture, after the generator of GDFQ and the style modulation of StyleGAN.

    Args:
        classes: K.
        image_shape: (C, H, W).
        pixel_bounds: normalized values of black and white by channel, where known.
    """

    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int],
        pixel_bounds: PixelBounds,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        doublings = max(1, min(len(_CHANNELS) - 1, int(math.log2(max(min(height, width) / _SMALLEST_SIDE, 1)))))
        self.image_size = (height, width)
        factor = 2**doublings
        self.start = (math.ceil((height + 2 * _MARGIN) / factor), math.ceil((width + 2 * _MARGIN) / factor))
        self.embedding = nn.Embedding(classes, VARIATION_SIZE)
        area = self.start[0] * self.start[1]
        self.layout = nn.Linear(2 * VARIATION_SIZE, _CHANNELS[0] * area)
        self.backdrop = nn.Linear(STYLE_SIZE, _STYLE_CHANNELS * area)
        widths = (_CHANNELS[0] + _STYLE_CHANNELS, *_CHANNELS[1 : doublings + 1])
        first, *others = itertools.pairwise(widths)
        self.first_block = FirstBlock(*first)
        self.blocks = nn.ModuleList(StyledBlock(a, b) for a, b in others)
        self.to_image = nn.Conv2d(widths[-1], channels, 3, bias=False)
        self.image_norm = nn.BatchNorm2d(channels, track_running_stats=False)
        self.pixel_space = PixelSpace(pixel_bounds, channels)

    def forward(self, content: Content, style: Tensor) -> Tensor:
        """Contents (N) and styles (N, STYLE_SIZE) -> normalized images (N, C, H, W), float32.

        The batch is normalized over itself: give at least a few dozen rows. Contents that come several times,
        as `Content.repeat` makes them, are laid out once.
        """
        distinct = content.distinct
        code = torch.cat([self._class_code(distinct), distinct.variation], 1)
        layout, backdrop = self._start(self.layout(code)), self._start(self.backdrop(style))
        features = self.first_block.forward_under_styles(layout, backdrop, style)
        for block in self.blocks:
            features = block(features, style)
        plane = convolve_middle(features, self.to_image.weight, self.image_size)
        # Few channels: over whole planes their statistics take a fraction of the time.
        images: Tensor = self.pixel_space(self.image_norm(plane.contiguous()))
        return images.contiguous(memory_format=torch.channels_last)

    def _start(self, values: Tensor) -> Tensor:
        """(N, A h w) -> a coarse map (N, A, h, w), normalized over the batch."""
        features = values.unflatten(1, (-1, *self.start)).contiguous(memory_format=torch.channels_last)
        return functional.leaky_relu(functional.batch_norm(features, None, None, training=True), SLOPE)

    def _class_code(self, content: Content) -> Tensor:
        """(N, VARIATION_SIZE): the class's embedding; between two, their mean, as long as one of them."""
        second = content.second_share[:, None]
        blend = torch.lerp(self.embedding(content.labels), self.embedding(content.second_labels), second)
        return blend / ((1 - second).square() + second.square()).sqrt()


def initialize(generator: ContentStyleGenerator, random: torch.Generator) -> None:
    """Draws the generator's weights from an explicit random stream."""
    for name, parameter in generator.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                is_embedding = name.startswith("embedding")
                fan_in = 1 if is_embedding else parameter[0].numel()
                gain = 0.3 if ".style." in name else 1.0
                values = torch.randn(parameter.shape, generator=random)
                parameter.copy_(values * gain / math.sqrt(fan_in))
            elif name != "image_norm.weight":
                parameter.zero_()


def mode_seeking_loss(causes: tuple[Tensor, Tensor], effects: tuple[Tensor, Tensor], epsilon: float = 1e-4) -> Tensor:
    """Mean of ||z_a - z_b|| / ||x_a - x_b||: what differs in its causes must differ in the picture [ours].

    Without it the generator may ignore a cause. Each pair is ((N, Z), (N, Z)) and ((N, ...), (N, ...));
    both distances are root mean squares. After Mao et al., "Mode seeking GANs" (CVPR 2019), eq. 4.
    """
    cause_distance = (causes[0] - causes[1]).flatten(1).square().mean(1).sqrt()
    effect_distance = (effects[0].float() - effects[1].float()).flatten(1).square().mean(1).add(epsilon).sqrt()
    return (cause_distance / effect_distance).mean()


def style_diversity_loss(images: Tensor, styles: Tensor) -> Tensor:
    """Mode seeking over all pairs of styles; images (M, N, C, H, W), styles (M, N, S)."""
    return mode_seeking_loss(_style_pairs(styles), _style_pairs(images))


def _style_pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """(M, N, ...) -> both sides of all pairs of styles, (M (M - 1) / 2 * N, ...) each."""
    firsts, seconds = zip(*itertools.combinations(values.unbind(), 2), strict=True)
    return torch.cat(firsts), torch.cat(seconds)
