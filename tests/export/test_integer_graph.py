"""The integer graph computes what the simulation does, its biases in units of the accumulator."""

import pytest
import torch
from torch import nn

from causal_dfq.export.integer_graph import Requantize, Stored, integer_graph
from causal_dfq.export.variants import with_reduced_weights, with_symmetric_activations
from causal_dfq.quantizer.modules import FrozenActivationQuantizer, IntegerWeight
from tests.export.conftest import finished_network
from tests.networks import ALL, Concatenating, Residual

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("network", ALL)
@torch.no_grad()
def test_it_differs_from_the_simulation_by_rounded_biases_alone(network: type[nn.Module], kind: str) -> None:
    simulated = finished_network(network()).graph_module
    if kind == "int8":
        simulated = with_symmetric_activations(simulated)
    found, expected = integer_graph(simulated, kind)(IMAGES), simulated(IMAGES)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.std()))


@torch.no_grad()
def test_a_bias_is_the_nearest_multiple_of_input_scale_times_weight_scale() -> None:
    simulated = finished_network(Residual()).graph_module
    graph = integer_graph(simulated, "uint8")
    bias, weight = graph.get_submodule("bias_codes.conv2d"), graph.get_submodule("weight_quantizers.conv2d")
    scale = graph.get_submodule("activation_quantizers.images").scale * weight.scale
    assert bias.codes.dtype == torch.int32
    torch.testing.assert_close(bias.scale, scale, rtol=0, atol=0)
    exact = simulated.layers.conv2d.bias
    assert ((bias() - exact).abs() <= 0.5001 * scale).all()
    assert (bias() - exact).abs().max() > 0


@torch.no_grad()
def test_a_channel_without_weight_takes_the_scale_that_its_bias_needs() -> None:
    simulated = finished_network(Residual()).graph_module
    weight = simulated.get_submodule("weight_quantizers.conv2d")
    assert isinstance(weight, IntegerWeight)
    weight.codes[2] = 0
    weight.scale[2] = 1e-12
    simulated.layers.conv2d.bias[2] = 3.0
    graph = integer_graph(simulated, "uint8")
    assert float(graph.get_submodule("bias_codes.conv2d")()[2]) == pytest.approx(3.0)
    torch.testing.assert_close(graph.get_submodule("weight_quantizers.conv2d")()[2], torch.zeros(3, 3, 3))


@torch.no_grad()
def test_a_bias_that_32_bits_do_not_hold_stays_in_float() -> None:
    simulated = finished_network(Residual()).graph_module
    simulated.weight_quantizers.conv2d.scale[2] = 1e-12
    simulated.layers.conv2d.bias[2] = 3.0
    graph = integer_graph(simulated, "uint8")
    assert not hasattr(graph.bias_codes, "conv2d")
    assert hasattr(graph.bias_codes, "conv2d_1")


def test_an_activation_whose_grid_clips_alike_is_left_out_and_another_one_stays() -> None:
    simulated = finished_network(Residual()).graph_module
    quantizer = simulated.get_submodule("activation_quantizers.relu")
    assert isinstance(quantizer, FrozenActivationQuantizer)
    assert "relu" not in [node.name for node in integer_graph(simulated, "uint8").graph.nodes]
    quantizer.zero_point.fill_(7)
    names = [node.name for node in integer_graph(simulated, "uint8").graph.nodes]
    assert "relu" in names
    assert "relu_1" not in names


def test_what_an_operation_reads_behind_moves_is_requantized_to_the_same_grid() -> None:
    graph = integer_graph(finished_network(Concatenating()).graph_module, "uint8")
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.name in ("conv2d_2", "batch_norm", "linear"):
            source = node.args[0]
            assert source.op == "call_module"
            assert isinstance(modules[source.target], Requantize)


@torch.no_grad()
def test_reduced_weights_keep_to_seven_bits_and_move_by_no_more_than_half_a_step() -> None:
    simulated = finished_network(Residual()).graph_module
    reduced = with_reduced_weights(simulated)
    for name in ("conv2d", "conv2d_1", "linear"):
        before, after = (each.get_submodule(f"weight_quantizers.{name}") for each in (simulated, reduced))
        assert before.codes.abs().max() > 64
        assert after.codes.min() >= -64
        assert after.codes.max() <= 63
        # The highest code, 63, reaches one step less far than the lowest.
        assert ((before() - after()).abs() <= 1.01 * after.scale).all()
        torch.testing.assert_close(after.scale, 2 * before.scale)
    four = finished_network(Residual(), "w4a8").graph_module
    torch.testing.assert_close(with_reduced_weights(four)(IMAGES), four(IMAGES), rtol=0, atol=0)


def test_symmetric_grids_reach_as_far_as_the_grids_that_were() -> None:
    simulated = finished_network(Residual(), "w4a4").graph_module
    symmetric = with_symmetric_activations(simulated)
    for name, before in simulated.named_modules():
        if isinstance(before, FrozenActivationQuantizer):
            after = symmetric.get_submodule(name)
            highest, middle = 2**before.bits - 1, 2 ** (before.bits - 1)
            assert float(after.zero_point) == middle
            low, high = -before.zero_point * before.scale, (highest - before.zero_point) * before.scale
            reach = -middle * after.scale, (middle - 1) * after.scale
            assert reach[0] <= low * (1 - 1e-6)
            assert reach[1] >= high * (1 - 1e-6)


def test_constants_keep_their_codes() -> None:
    simulated = finished_network(Residual(), "w2a4").graph_module
    graph = integer_graph(simulated, "uint8")
    stored = [module for module in graph.modules() if isinstance(module, Stored) and module.bits == 2]
    assert len(stored) == 3
    assert torch.equal(stored[0].codes, simulated.weight_quantizers.conv2d.codes)
