"""Small networks, each with one property that the capture or the placement must handle."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def trained(network: nn.Module) -> nn.Module:
    """Random weights, the same ones each time, and plausible BatchNorm statistics, in evaluation mode."""
    torch.manual_seed(0)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
    return network.eval()


class Residual(nn.Module):
    """Functional ReLU and a residual add; (N, 3, 8, 8) -> (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.bn1(self.conv1(images)))
        features = functional.relu(features + self.bn2(self.conv2(features)))
        return self.fc(features.mean((2, 3)))


class Concatenating(nn.Module):
    """Two branches, concatenated; BatchNorm before activation that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, 1, 1)
        self.right = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.cat([self.left(images), self.right(images)], 1)
        features = self.head(functional.relu(self.norm(features)))
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(features, 1), 1))


class SqueezeExcite(nn.Module):
    """Depthwise convolution, hardswish, and a gate multiplied in; dropout and ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.bn1(self.expand(images)), inplace=True)
        features = functional.hardswish(self.bn2(self.depthwise(features)))
        features = features * torch.sigmoid(self.gate(features.mean((2, 3), keepdim=True)))
        return self.fc(self.dropout(features.mean((2, 3))))


class Grouped(nn.Module):
    """A grouped convolution, as ResNeXt has, and a strided depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn3 = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.bn1(self.stem(images)))
        features = torch.relu(self.bn2(self.grouped(features)))
        return self.fc(torch.relu(self.bn3(self.depthwise(features))).mean((2, 3)))


class Reused(nn.Module):
    """One convolution called twice, with another BatchNorm each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.bn2 = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.bn1(self.conv(images)))
        features = functional.relu(self.bn2(self.conv(features)))
        return self.fc(features.mean((2, 3)))


class Normalized(nn.Module):
    """A stream of tokens that LayerNorm reads, and once a layer; a square with factor and offset; no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.expand, self.reduce = nn.Linear(8, 16), nn.Linear(16, 8)
        self.layer_scale = nn.Parameter(torch.full((8,), 0.5))
        self.local = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.patches(images).flatten(2).transpose(1, 2) + self.position
        branch = functional.relu(self.expand(self.norm1(stream))) ** 2 * 0.8 - 0.4
        stream = stream + self.layer_scale * self.reduce(branch)
        stream = stream + self.local(stream) + self.norm1(stream)
        return self.fc(self.norm2(stream).mean(1))


ALL = (Residual, Concatenating, SqueezeExcite, Reused)
