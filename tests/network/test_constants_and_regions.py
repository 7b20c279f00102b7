"""What capture takes out of a graph: constants, operations that change nothing, regions of other modes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_dfq.errors import CaptureError
from causal_dfq.network.capture import capture
from causal_dfq.network.fold import fold_batch_norm
from causal_dfq.network.operations import has_float_value, operation_name, weight_layer_nodes
from tests.networks import Residual, trained

SHAPE = (3, 8, 8)


def images() -> Tensor:
    return torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_what_is_computed_of_constants_alone_is_a_constant() -> None:
    class Constants(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(8.0))

        def forward(self, images: Tensor) -> Tensor:
            mask = images.new_zeros(8, 8)
            mask[2:5] = 1.0
            return super().forward(images * mask + torch.sin(self.table).view(1, 1, 1, 8))

    network = trained(Constants())
    nn.utils.parametrizations.weight_norm(network.conv2)
    module = fold_batch_norm(capture(network, SHAPE))
    torch.testing.assert_close(module(images()), network(images()), rtol=1e-4, atol=1e-5)
    names = " ".join(str(node.target) for node in module.graph.nodes if node.op == "call_function")
    assert not [name for name in ("sin", "new_zeros", "fill", "weight_norm", "slice") if name in names]
    assert module.get_submodule("layers.conv2d_1").weight.shape == network.conv2.weight.shape


def test_nothing_names_the_device_of_the_capture() -> None:
    class Positions(Residual):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.float() + torch.arange(8.0).sin() + torch.ones(8, 1))

    network = trained(Positions())
    captured = capture(network, SHAPE)
    torch.testing.assert_close(captured(images()), network(images()))
    calls = [node for node in captured.graph.nodes if node.op == "call_function"]
    assert not [node for node in calls if "device" in node.kwargs or "assert" in str(node.target)]


class Neutral(nn.Module):
    """Factors of one and offsets of zero, of which one repeats the features and one makes them float."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
        self.one, self.zero = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(4, 1, 1))
        self.register_buffer("ones", torch.ones(2, 1, 1, 1, 1))
        self.register_buffer("share", torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        features = self.zero + self.one * self.conv(images) / 1 - 0
        repeated = (features * self.ones).sum(0)
        positive = (features > 0) * 1.0
        # A size is no tensor.
        return self.fc((repeated + positive).mean((2, 3))) * (self.share * images.shape[0]) / images.shape[0]


def test_operations_that_change_nothing_are_gone() -> None:
    network = trained(Neutral())
    graph = capture(network, (3, 8, 8))
    names = [operation_name(node) for node in graph.graph.nodes if has_float_value(node) and node.op == "call_function"]
    assert names[:7] == ["conv2d", "mul", "sum", "mul", "add", "mean", "linear"]
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(graph(images), network(images))


def test_autocast_of_the_forward_is_refused() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)

        def forward(self, images: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                features = self.conv(images)
            return features.float().mean((2, 3))

    with pytest.raises(CaptureError, match="autocast"):
        capture(Cast(), (3, 8, 8))


class InRegions(nn.Module):
    """Layers within a region without autocast, one of them in a region without gradients inside."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        with torch.amp.autocast("cpu", enabled=False):
            features = functional.relu(self.outer(images))
            with torch.no_grad():
                features, sizes = self.inner(features), features.mean((2, 3))
        return self.fc(features.mean((2, 3)) + sizes)


def test_layers_in_regions_of_other_modes_are_seen() -> None:
    network = trained(InRegions())
    graph = capture(network, (3, 8, 8))
    assert [node.op for node in graph.graph.nodes if "submod" in str(node.target) or "wrap_" in str(node.target)] == []
    assert len(weight_layer_nodes(graph.graph)) == 3
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(graph(images), network(images))
