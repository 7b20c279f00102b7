"""A network as a chain of units: where they are cut, and that the chain is the network."""

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from causal_dfq.network.capture import capture
from causal_dfq.network.fold import fold_batch_norm
from causal_dfq.network.operations import weight_layer_nodes
from causal_dfq.network.units import part_between
from causal_dfq.training.unit_walk import reconstruction_units
from tests.networks import ALL, Residual, trained


def folded(network: nn.Module, side: int = 8) -> fx.GraphModule:
    return fold_batch_norm(capture(trained(network), (3, side, side)))


class Chain(nn.Module):
    """Two convolutions, a residual block with a projection, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.inner, self.outer, self.projection = nn.Conv2d(4, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(4, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.second(functional.relu(self.first(images))))
        block = self.norm(self.outer(functional.relu(self.inner(features))))
        features = functional.relu(block + self.projection(features))
        return self.fc(features.mean((2, 3)))


class Viewed(nn.Module):
    """Reads the number of images where it flattens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.second(functional.relu(self.first(images))))
        return self.fc(features.view(features.size(0), -1))


def test_reading_the_number_of_images_joins_nothing() -> None:
    assert [len(unit.layers) for unit in reconstruction_units(folded(Viewed()))] == [1, 1, 1]


def test_plain_layers_are_units_and_a_residual_block_is_one() -> None:
    units = reconstruction_units(folded(Chain()))
    assert [len(unit.layers) for unit in units] == [1, 1, 3, 1]
    assert [one.result for one in units[:-1]] == [other.source for other in units[1:]]


@pytest.mark.parametrize("network", [*ALL, Chain, Viewed])
def test_the_chain_of_units_is_the_network(network: type) -> None:
    module = folded(network())
    units = reconstruction_units(module)
    layers = [layer for unit in units for layer in unit.layers]
    assert layers == [node.name for node in weight_layer_nodes(module.graph)]
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    values = images
    for unit in units:
        values = part_between(module, unit.source, unit.result)(values)
    torch.testing.assert_close(values, module(images))


def test_a_part_shares_its_parameters_with_the_network() -> None:
    module = folded(Residual())
    unit = reconstruction_units(module)[0]
    part = part_between(module, unit.source, unit.result)
    assert {id(parameter) for parameter in part.parameters()} <= {id(parameter) for parameter in module.parameters()}


def test_a_part_that_has_another_entrance_is_refused() -> None:
    module = folded(Residual())
    inner = next(node.name for node in module.graph.nodes if node.name.startswith("conv2d_1"))
    logits = next(node for node in module.graph.nodes if node.op == "output").args[0]
    with pytest.raises(ValueError, match="past"):
        part_between(module, inner, logits.name)
