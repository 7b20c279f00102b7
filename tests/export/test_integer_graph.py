"""The integer graph computes what the simulation does, its biases stored in units of the accumulator."""

from pathlib import Path

import pytest
import torch
from torch import nn

from causal_dfq.export.integer_graph import Requantize, Stored, integer_graph
from causal_dfq.export.onnx_file import export_onnx
from causal_dfq.export.variants import with_reduced_weights, with_symmetric_activations
from causal_dfq.quantizer.accumulator import drop_accumulators
from causal_dfq.quantizer.modules import FrozenActivationQuantizer, IntegerWeight
from tests.export.conftest import finished_network
from tests.networks import ALL, Concatenating, Residual

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("network", ALL)
@torch.no_grad()
def test_it_computes_what_the_simulation_does(network: type[nn.Module], kind: str) -> None:
    simulated = finished_network(network()).graph_module
    if kind == "int8":
        simulated = with_symmetric_activations(simulated)
    found, expected = integer_graph(simulated, kind)(IMAGES), simulated(IMAGES)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.std()))


@torch.no_grad()
def test_a_bias_is_stored_in_units_of_input_scale_times_weight_scale() -> None:
    simulated = finished_network(Residual(), protocol="gdfq").graph_module
    graph = integer_graph(simulated, "uint8")
    bias, weight = graph.get_submodule("causal_dfq_biases.conv2d_1"), graph.get_submodule("weight_quantizers.conv2d_1")
    scale = graph.get_submodule("activation_quantizers.relu").scale * weight.scale.flatten()
    assert bias.codes.dtype == torch.int32
    torch.testing.assert_close(bias.scale, scale, rtol=0, atol=0)
    exact = simulated.layers.conv2d_1.bias
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
    assert float(graph.get_submodule("causal_dfq_biases.conv2d")()[2]) == pytest.approx(3.0)
    torch.testing.assert_close(graph.get_submodule("weight_quantizers.conv2d")()[2], torch.zeros(3, 3, 3))


@torch.no_grad()
def test_a_channel_too_small_for_its_bias_is_rounded_again_with_a_scale_that_leaves_room() -> None:
    simulated = finished_network(Residual()).graph_module
    simulated.weight_quantizers.conv2d.scale[2] = 1e-12
    simulated.layers.conv2d.bias[2] = 3.0
    graph = integer_graph(simulated, "uint8")
    bias, weight = graph.get_submodule("causal_dfq_biases.conv2d"), graph.get_submodule("weight_quantizers.conv2d")
    assert float(bias()[2]) == pytest.approx(3.0)
    # An accumulator of 32 bits holds the bias and all products.
    largest = 255 * weight.codes.float().abs().flatten(1).sum(1) + bias.codes.abs()
    assert (largest < 2**31).all()
    torch.testing.assert_close(weight()[2], torch.zeros(3, 3, 3), rtol=0, atol=1e-8)


def test_an_activation_becomes_the_ends_of_its_requantization() -> None:
    simulated = finished_network(Residual()).graph_module
    quantizer = simulated.get_submodule("activation_quantizers.relu")
    assert isinstance(quantizer, FrozenActivationQuantizer)
    assert "relu" not in [node.name for node in integer_graph(simulated, "uint8").graph.nodes]
    quantizer.zero_point.fill_(7)
    graph = integer_graph(simulated, "uint8")
    assert "relu" not in [node.name for node in graph.graph.nodes]
    assert graph.get_submodule("activation_quantizers.relu").ends == (7, 255)
    assert graph.get_submodule("activation_quantizers.relu_1").ends == (0, 255)
    drop_accumulators(simulated)
    torch.testing.assert_close(graph(IMAGES), simulated(IMAGES), rtol=0, atol=0.02 * float(graph(IMAGES).std()))
    # Signed codes have no ends of their own in the file: there the activation stays.
    names = [node.name for node in integer_graph(simulated, "int8").graph.nodes]
    assert "relu" in names
    assert "relu_1" not in names


@torch.no_grad()
def test_a_clip_above_the_grid_of_six_is_a_clip_of_codes(out: Path) -> None:
    class Capped(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(
                nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(128, 4)
            )

    quantized = finished_network(Capped())
    for name in ("hardtanh", "hardtanh_1"):
        # The grid reaches to 8.
        quantized.graph_module.get_submodule(f"activation_quantizers.{name}").scale.fill_(8 / 255)
    drop_accumulators(quantized.graph_module)
    exported = export_onnx(quantized, out)
    assert exported.fusion.fused == exported.fusion.total == 3
    assert exported.parity.cosine > 0.9999


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


@torch.no_grad()
def test_reduced_weights_with_zero_points_keep_zero() -> None:
    simulated = finished_network(Residual(), protocol="gdfq").graph_module
    weight = simulated.get_submodule("weight_quantizers.conv2d")
    assert isinstance(weight, IntegerWeight)
    weight.zero_point.fill_(127)
    weight.codes.clamp_(max=127)
    reduced = with_reduced_weights(simulated).get_submodule("weight_quantizers.conv2d")
    assert isinstance(reduced, IntegerWeight)
    is_zero = weight.codes == 127
    assert is_zero.any()
    assert not reduced()[is_zero].any()


class Moving(nn.Module):
    """Chunks, a shuffle, an integer tensor on the way, pooling before a convolution, and logits behind a move."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(4, 4, 1)
        self.third = nn.Conv2d(8, 5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left, right = torch.relu(self.norm(self.first(images))).chunk(2, 1)
        both = torch.cat([left, self.second(right)], 1)
        count, channels, height, width = both.shape
        shuffled = (
            both.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(count, channels, height, width)
        )
        pooled = nn.functional.max_pool2d(shuffled, 2)
        sign = (pooled.mean((2, 3)) > 0).to(torch.int64).sum(1, keepdim=True).float()
        return self.third(pooled).amax((2, 3)).flatten(1) + 0.01 * sign


@pytest.mark.parametrize("bits", ["w8a8", "w8a32", "w32a8"])
@torch.no_grad()
def test_moved_split_and_integer_tensors_keep_their_values(bits: str) -> None:
    simulated = finished_network(Moving(), bits).graph_module
    found, expected = integer_graph(simulated, "uint8")(IMAGES), simulated(IMAGES)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.std()))


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
