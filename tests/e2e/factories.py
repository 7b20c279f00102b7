"""Networks that the end-to-end tests name on the command line."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """Two convolutions with BatchNorm, a functional ReLU and a residual add; 3x16x16 -> 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.bn1(self.conv1(images)))
        features = functional.relu(features + self.bn2(self.conv2(features)))
        return self.fc(features.mean((2, 3)))


def residual() -> nn.Module:
    return Residual()


def not_finite() -> nn.Module:
    network = Residual()
    with torch.no_grad():
        network.conv2.weight[0, 0, 0, 0] = torch.nan
    return network


def without_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


class Branching(Residual):
    """Its forward depends on the values of the images."""

    def forward(self, images: Tensor) -> Tensor:
        if images.sum() > 0:
            return super().forward(images)
        return super().forward(-images)


def branching() -> nn.Module:
    return Branching()
