"""Biases of finished networks lie on the grid of their layers' accumulators."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import causal_dfq
from causal_dfq.network.operations import attribute
from causal_dfq.quantized import QuantizedNetwork
from causal_dfq.quantizer.accumulator import biased_layers, drop_accumulators
from causal_dfq.quantizer.modules import Accumulator
from causal_dfq.quantizer.runtime_arithmetic import CodeOperation, IntegerAddition, IntegerProduct
from tests.export.conftest import finished_network
from tests.networks import ALL, Concatenating, Residual


def steps_off_the_grid(quantized: QuantizedNetwork) -> list[float]:
    """Of each layer with an input on a grid, the largest distance of a bias from a multiple of its unit."""
    found = []
    for layer in biased_layers(quantized.graph_module):
        unit = layer.input_scale.double() * layer.weight.scale.flatten().double()
        codes = attribute(quantized.graph_module, str(layer.bias.target)).double() / unit
        found.append(float((codes - codes.round()).abs().max()))
    return found


@pytest.mark.parametrize("network", ALL)
def test_deploy_rounds_every_bias(network: type[nn.Module]) -> None:
    offs = steps_off_the_grid(finished_network(network(), "w4a8"))
    assert offs
    assert max(offs) < 1e-2


def test_a_rounded_bias_is_the_nearest_one() -> None:
    network = Residual()
    rounded, exact = (finished_network(network, protocol=protocol) for protocol in ("deploy", "gdfq"))
    for layer in biased_layers(rounded.graph_module):
        unit = layer.input_scale * layer.weight.scale.flatten()
        name = str(layer.bias.target)
        difference = attribute(rounded.graph_module, name) - attribute(exact.graph_module, name)
        assert (difference.abs() <= 0.501 * unit).all()
        assert difference.abs().max() > 0


def test_the_protocols_of_papers_keep_biases_in_float() -> None:
    assert max(steps_off_the_grid(finished_network(Residual(), "w4a8", "gdfq"))) > 0.1


class Clipped(nn.Module):
    """A ReLU6 behind a layer of few, coarse weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.clip, self.fc = nn.Conv2d(3, 3, 1, groups=3), nn.ReLU6(), nn.Linear(3, 5)
        nn.init.constant_(self.conv.weight, 9.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.clip(self.conv(images)).mean((2, 3)))


@torch.no_grad()
def test_what_is_clipped_meets_the_end_and_not_a_multiple_of_the_unit_below_it() -> None:
    graph = finished_network(Clipped(), "w2a8").graph_module
    calls = [node for node in graph.graph.nodes if isinstance(node.target, str) and "accumulators" in node.target]
    layers = {layer.node for layer in biased_layers(graph)}
    assert calls
    assert all(node.args[0] in layers for node in calls if "conv2d" in str(node.target))


@torch.no_grad()
@pytest.mark.parametrize("network", ALL)
def test_dropped_accumulators_change_nothing_but_ties(network: type[nn.Module]) -> None:
    graph = finished_network(network()).graph_module
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = graph(images)
    assert any(isinstance(module, Accumulator) for module in graph.modules())
    drop_accumulators(graph)
    assert not any(str(node.target).startswith("accumulators") for node in graph.graph.nodes)
    torch.testing.assert_close(graph(images), expected, rtol=0, atol=0.02 * float(expected.std()))


def test_a_saved_network_keeps_its_accumulators(tmp_path: Path) -> None:
    finished = finished_network(Concatenating(), "w4a4")
    finished.save(tmp_path)
    again = causal_dfq.load(tmp_path)
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(images), finished(images))
    names = {name for name, module in finished.graph_module.named_modules() if isinstance(module, Accumulator)}
    assert len(names) >= 3
    assert names == {name for name, module in again.graph_module.named_modules() if isinstance(module, Accumulator)}


SCALES, ZERO_POINTS = torch.tensor([0.0477, 0.0444, 0.0316]), torch.tensor([119.0, 122.0, 3.0])


@pytest.mark.parametrize("kind", [IntegerAddition, IntegerProduct])
def test_two_tensors_become_the_nearest_code_of_the_result(kind: type[CodeOperation]) -> None:
    first, second = torch.arange(256.0).view(-1, 1), torch.arange(256.0).view(1, -1)
    a, b = (first - 119) * SCALES[0], (second - 122) * SCALES[1]
    found = (kind(SCALES, ZERO_POINTS)(a, b) / SCALES[2] + ZERO_POINTS[2]).double()
    a, b = (first - 119).double() * SCALES[0].double(), (second - 122).double() * SCALES[1].double()
    exact = (a + b if kind is IntegerAddition else a * b) / SCALES[2].double() + 3
    is_tie = ((exact - exact.floor()) - 0.5).abs() < 1e-3
    torch.testing.assert_close(found[~is_tie], exact.round()[~is_tie], rtol=1e-6, atol=1e-3)
    assert ((found - exact).abs() < 0.502).all()


class Gated(Residual):
    """A tensor times another one."""

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.bn1(self.conv1(images)))
        features = features * torch.sigmoid(self.bn2(self.conv2(features)))
        return self.fc(features.mean((2, 3)))


@pytest.mark.parametrize(("network", "kind"), [(Residual, IntegerAddition), (Gated, IntegerProduct)])
def test_pairs_are_simulated_where_both_and_the_result_are_on_grids(
    network: type[nn.Module], kind: type[CodeOperation], tmp_path: Path
) -> None:
    finished = finished_network(network())
    assert [type(module) for module in finished.modules() if isinstance(module, CodeOperation)] == [kind]
    of_papers = finished_network(network(), protocol="gdfq")
    assert not [module for module in of_papers.modules() if isinstance(module, CodeOperation)]
    finished.save(tmp_path)
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(causal_dfq.load(tmp_path)(images), finished(images))
    drop_accumulators(finished.graph_module)
    assert not [node for node in finished.graph_module.graph.nodes if str(node.target).startswith("accumulators")]
