"""Writes into tensors: captured as what the network computes, also through views and where images are far out."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_dfq.network.capture import capture
from causal_dfq.network.in_place import functional_overload, writes_through_views
from tests.networks import ALL, trained

aten = torch.ops.aten
SHAPE = (3, 8, 8)


class _Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 1, 1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)


class IntoView(_Writing):
    """Clips half of the channels, by far above what usual images give."""

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.norm(self.conv(images)))
        features[:, :4].clamp_(max=6)
        return self.fc(features.mean((2, 3)))


class UnderView(_Writing):
    """Clips a tensor that is read through a view of it."""

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.norm(self.conv(images)))
        rows = features.flatten(2)
        features.clamp_(max=6)
        return self.fc(rows.mean(2))


class IntoSelection(_Writing):
    """Enlarges one channel of what is then read as a whole."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images))
        first = features.select(1, 0)
        first.mul_(3)
        return self.fc(functional.relu(features).mean((2, 3)))


class WithoutTwin(_Writing):
    """A call that torch has in place alone."""

    def forward(self, images: Tensor) -> Tensor:
        scores = torch.zeros(8, 8).fill_diagonal_(-1.0)
        return self.fc(functional.relu(self.norm(self.conv(images))).mean((2, 3)) @ scores)


class InTurn(_Writing):
    """Several calls in place after another, none of which anything else sees."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images))
        features.relu_()
        features.clamp_(max=6).mul_(0.5)
        return self.fc(features.mean((2, 3)))


@pytest.mark.parametrize("build", [IntoView, UnderView, IntoSelection, WithoutTwin, InTurn])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_the_captured_graph_computes_what_the_network_does_on_any_images(build: type[nn.Module], scale: float) -> None:
    network = trained(build())
    images = scale * torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    graph = capture(network, SHAPE)
    torch.testing.assert_close(graph(images.clone()), network(images.clone()), rtol=1e-4, atol=1e-4)
    assert not any(str(node.target).split(".")[1:2][-1:] == ["clamp_"] for node in graph.graph.nodes)


@pytest.mark.parametrize(
    ("build", "expected"), [(IntoView, True), (UnderView, True), (IntoSelection, True), (InTurn, False)]
)
def test_only_writes_that_others_see_need_more_than_a_twin(build: type[nn.Module], expected: bool) -> None:
    images = torch.randn(2, *SHAPE)
    exported = torch.export.export(trained(build()), (images,)).module()
    assert writes_through_views(exported) is expected


@pytest.mark.parametrize("build", ALL)
def test_usual_networks_need_no_more(build: type[nn.Module]) -> None:
    assert not writes_through_views(torch.export.export(trained(build()), (torch.randn(2, *SHAPE),)).module())


def test_a_twin_has_the_same_overload() -> None:
    assert functional_overload(aten.add_.Tensor) is aten.add.Tensor
    assert functional_overload(aten.relu.default) is None
    assert functional_overload(aten.fill_diagonal_.default) is None
