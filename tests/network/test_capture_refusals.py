"""What a capture sees through, and what it refuses before anything is trained."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from causal_dfq.errors import CaptureError, WeightsError
from causal_dfq.network.capture import capture
from tests.networks import Residual, trained

SHAPE = (3, 8, 8)


def images(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


class Branches(nn.Module):
    """A branch that torch.export can take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        features = torch.cond(features.sum() > 0, lambda x: x.relu(), lambda x: x.sigmoid(), (features,))
        return self.fc(features.mean((2, 3)))


class Deformed(nn.Module):
    """An operation of torchvision's own."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.deformed, self.fc = nn.Conv2d(3, 18, 3), DeformConv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.deformed(images, self.offset(images)).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "words"), [(Branches, "torch.cond"), (Deformed, "torchvision.deform_conv2d.default at deformed")]
)
def test_what_could_not_be_saved_is_told_before_anything_is_trained(network: type[nn.Module], words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        capture(trained(network()), SHAPE)


def test_a_single_logit_is_refused_with_what_to_write_instead() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(CaptureError, match=r"a single logit.*torch\.cat"):
        capture(network, SHAPE)


class Wrapped(nn.Module):
    """Hands everything on."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Residual()

    def forward(self, *images: Tensor, **more: object) -> Tensor:
        return self.network(*images, **more)


@pytest.mark.parametrize("wrap", [lambda: nn.DataParallel(Residual()), Wrapped])
def test_wrappers_of_any_arguments_are_seen_through(wrap: Callable[[], nn.Module]) -> None:
    network = trained(wrap())
    torch.testing.assert_close(capture(network, SHAPE)(images(7)), network(images(7)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), "'1.weight' has no shape yet"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5, device="meta")), "'1.weight' is on the device meta"),
    ],
)
def test_parameters_without_values_are_named(build: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        capture(build(), SHAPE)
