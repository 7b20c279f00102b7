"""The architectures of the bundled networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions; a 1x1 convolution where the shape changes.

    Source: He et al., "Deep Residual Learning" (CVPR 2016), section 4.2.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H / stride, W / stride)."""
        residual = functional.relu(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        return functional.relu(residual + self.shortcut(features))


class ResNet20(nn.Module):
    """ResNet-20 for small images: three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self, in_channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.fc = nn.Linear(64, classes)

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(in_channels, channels, stride),
            BasicBlock(channels, channels, 1),
            BasicBlock(channels, channels, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (N, in_channels, H, W) -> logits (N, classes)."""
        features = functional.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        pooled: Tensor = features.mean((2, 3))
        logits: Tensor = self.fc(pooled)
        return logits


class ConvBNReLU6(nn.Sequential):
    """Convolution, BatchNorm, ReLU6."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
        )


class InvertedResidual(nn.Module):
    """Expansion, depthwise 3x3 convolution, linear projection; residual where shapes agree.

    Source: Sandler et al., "MobileNetV2" (CVPR 2018), section 3.3.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [ConvBNReLU6(in_channels, hidden, 1, 1)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            ConvBNReLU6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.is_residual = stride == 1 and in_channels == channels

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H / stride, W / stride)."""
        output: Tensor = self.layers(features)
        return features + output if self.is_residual else output


class MobileNetV2Small(nn.Module):
    """MobileNetV2 for 32x32 images: total stride 4, 96 channels at the end, about 0.4 M weights."""

    # (expansion, channels, blocks, stride of the first block)
    STAGES = ((1, 16, 1, 1), (2, 24, 1, 2), (3, 32, 3, 1), (4, 64, 4, 2), (4, 96, 2, 1))

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = ConvBNReLU6(3, 16, 3, 1)
        blocks: list[nn.Module] = []
        in_channels = 16
        for expansion, channels, count, first_stride in self.STAGES:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedResidual(in_channels, channels, stride, expansion))
                in_channels = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvBNReLU6(in_channels, 384, 1, 1)
        self.fc = nn.Linear(384, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) -> logits (N, classes)."""
        features = self.head(self.blocks(self.stem(images)))
        pooled = torch.flatten(functional.adaptive_avg_pool2d(features, 1), 1)
        logits: Tensor = self.fc(pooled)
        return logits
