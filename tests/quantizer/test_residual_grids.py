"""Where summands and sum share a step size, adding codes is exact; they share where that costs less."""

import pytest
import torch
from torch import fx

from causal_dfq.config import make_options
from causal_dfq.network.operations import attribute
from causal_dfq.pipeline import prepare
from causal_dfq.quantized import freeze
from causal_dfq.quantizer.modules import ActivationQuantizer
from causal_dfq.quantizer.residual_grids import additions, share_step_sizes, step_size_leaders, tie_step_sizes
from tests.networks import Concatenating, Residual, trained

SCALES = (0.25, 0.5, 1.0)


def quantized(protocol: str = "deploy") -> fx.GraphModule:
    options = make_options(bits="w4a4", input_shape=(3, 8, 8), protocol=protocol)
    module = prepare(trained(Residual()), options).quantized
    for addition in additions(module):
        for name, scale in zip(addition.members, SCALES, strict=True):
            quantizer(module, name).set_range(scale, 0.0)
        quantizer(module, addition.summands[1]).set_range(SCALES[1], 7.0)
    return module


def quantizer(module: fx.GraphModule, name: str) -> ActivationQuantizer:
    found = attribute(module, name)
    assert isinstance(found, ActivationQuantizer)
    return found


def members(module: fx.GraphModule) -> list[ActivationQuantizer]:
    return [quantizer(module, name) for name in additions(module)[0].members]


def test_an_addition_is_found_with_its_clipped_sum() -> None:
    (addition,) = additions(quantized())
    assert addition.members == tuple(f"activation_quantizers.{name}" for name in ("relu", "conv2d_1", "relu_1"))


def test_where_a_summand_is_not_rounded_nothing_is_shared() -> None:
    assert additions(quantized("gdfq")) == []
    options = make_options(bits="w4a4", input_shape=(3, 8, 8))
    assert additions(prepare(trained(Concatenating()), options).quantized) == []


def test_the_step_size_of_least_error_is_taken_and_learned_as_one() -> None:
    module = quantized()
    total = additions(module)[0].total

    def error() -> float:
        scales = [float(member.scale) for member in members(module)]
        return abs(scales[0] - 0.5) + (0.0 if len(set(scales)) == 1 else 1.0)

    (group,) = share_step_sizes(module, error)
    assert set(group) == set(additions(module)[0].members)
    assert [float(member.scale.detach()) for member in members(module)] == pytest.approx([0.5] * 3)
    # The middle of the signed summand's range stays where it was.
    assert [float(member.zero_point) for member in members(module)] == [0, 7, 0]
    with torch.no_grad():
        quantizer(module, total).log_scale.add_(1.0)
    assert len({float(member.scale.detach()) for member in members(module)}) == 1


def test_where_sharing_costs_more_every_grid_stays_its_own() -> None:
    module = quantized()
    calls = iter(range(1000))
    assert share_step_sizes(module, lambda: float(next(calls))) == []
    assert [float(member.scale.detach()) for member in members(module)] == pytest.approx(SCALES)
    assert len({id(member.log_scale) for member in members(module)}) == 3


def test_shared_codes_add_without_being_rounded_again() -> None:
    module = quantized()
    share_step_sizes(module, lambda: abs(float(members(module)[0].scale) - 0.5))
    first, second, total = (attribute(freeze(module), name) for name in additions(module)[0].members)
    values = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    summed = (first(values[0]) + second(values[1])).relu()
    assert torch.equal(total(summed), summed.clamp_max(15 * float(total.scale)))


def test_a_loaded_state_is_tied_as_it_was_saved() -> None:
    module, loaded = quantized(), quantized()
    assert len(set(step_size_leaders(module).tolist())) == len(step_size_leaders(module))
    share_step_sizes(module, lambda: abs(float(members(module)[0].scale) - 0.5))
    loaded.load_state_dict(module.state_dict())
    tie_step_sizes(loaded, step_size_leaders(module))
    assert len({id(member.log_scale) for member in members(loaded)}) == 1
    assert torch.equal(step_size_leaders(loaded), step_size_leaders(module))
