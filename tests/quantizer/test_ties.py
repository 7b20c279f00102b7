"""That the grids of functions of codes keep clear of ties, and that other grids stay."""

import pytest
import torch
from torch import Tensor, nn

from causal_dfq.config import make_options
from causal_dfq.pipeline import prepare, start_run
from causal_dfq.quantized import freeze
from causal_dfq.quantizer.placement import ACTIVATION_QUANTIZERS
from causal_dfq.quantizer.ties import LEAST_DISTANCE, avoid_ties, distance_to_tie
from tests.networks import trained


class Gated(nn.Module):
    """A convolution, a function of its codes, and one of two tensors."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.conv, self.function, self.fc = nn.Conv2d(3, 6, 3), function, nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images)
        return self.fc((values * self.function(values)).mean((2, 3)))


def frozen(function: nn.Module) -> torch.fx.GraphModule:
    options = make_options(bits="w8a8", input_shape=(3, 8, 8))
    prepared = prepare(trained(Gated(function)), options)
    start_run(prepared, options, torch.device("cpu")).calibrate()
    return freeze(prepared.quantized)


def results(function: nn.Module, quantizer: nn.Module) -> Tensor:
    codes = torch.arange(256, dtype=torch.float64)
    return function((codes - quantizer.zero_point.double()) * quantizer.scale.double())


@pytest.mark.parametrize("function", [nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.Tanh()])
@pytest.mark.parametrize("code", [7, 100, 201])
def test_no_result_of_a_function_of_codes_lies_on_a_tie(function: nn.Module, code: int) -> None:
    network = frozen(function)
    name = type(function).__name__.lower()
    quantizers = network.get_submodule(ACTIVATION_QUANTIZERS)
    of_codes, of_result = quantizers.get_submodule("conv2d"), quantizers.get_submodule(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    # A result that lies in the middle between two codes to the last digit of float32.
    values = results(function, of_codes)
    chosen = float(values[code])
    steps = round(chosen / float(of_result.scale)) + (0.5 if chosen > 0 else -0.5)
    of_result.scale.copy_(torch.tensor(chosen / steps))
    near = of_result.scale.clone()
    assert distance_to_tie(values, near, of_result.zero_point, 255) < 1e-4

    avoid_ties(network)

    assert distance_to_tie(values, of_result.scale, of_result.zero_point, 255) >= LEAST_DISTANCE
    assert float(of_result.scale) == pytest.approx(float(near), rel=5.1e-3)
    after = network.state_dict()
    assert [key for key in before if key != f"{ACTIVATION_QUANTIZERS}.{name}.scale"] == [
        key for key, value in after.items() if torch.equal(value, before[key]) and not key.endswith(f".{name}.scale")
    ]
    # What keeps its distance stays.
    settled = of_result.scale.clone()
    avoid_ties(network)
    assert torch.equal(of_result.scale, settled)


def test_a_grid_that_is_as_wide_as_another_stays() -> None:
    network = frozen(nn.Sigmoid())
    quantizers = network.get_submodule(ACTIVATION_QUANTIZERS)
    of_codes, of_result, of_product = (quantizers.get_submodule(name) for name in ("conv2d", "sigmoid", "mul"))
    steps = round(float(results(nn.Sigmoid(), of_codes)[99]) / float(of_result.scale)) + 0.5
    tied = torch.tensor(float(results(nn.Sigmoid(), of_codes)[99]) / steps)
    of_result.scale.copy_(tied)
    of_product.scale.copy_(tied)
    avoid_ties(network)
    assert torch.equal(of_result.scale, tied)


def test_a_distance_counts_between_the_ends_alone() -> None:
    scale, zero = torch.tensor(0.5), torch.tensor(3.0)
    assert distance_to_tie(torch.tensor([0.0, 0.3]), scale, zero, 255) == pytest.approx(0.1, abs=1e-6)
    # 0.25 is a tie; so are -1.75 and 126.25, but both are cut to the ends.
    assert distance_to_tie(torch.tensor([0.25]), scale, zero, 255) == 0
    assert distance_to_tie(torch.tensor([-1.75, 126.25]), scale, zero, 255) == 0.5
