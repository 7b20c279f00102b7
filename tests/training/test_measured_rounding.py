"""Clipping, comparing and rounding in one pass: against the three one after the other."""

import math

import pytest
import torch
from torch import Tensor

from causal_dfq.config import make_options
from causal_dfq.network.operations import with_outputs
from causal_dfq.pipeline import prepare
from causal_dfq.quantizer.placement import integer_tensors
from causal_dfq.training.feature_error import relative_error
from causal_dfq.training.measured_rounding import measured_fake_quantize, with_feature_errors
from tests.networks import Concatenating, Normalized, Residual, SqueezeExcite, trained


def clipped(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """In float64: what lies between the bounds passes, with its gradient."""
    inside = (values > bounds[0]) & (values < bounds[1])
    return torch.where(inside, values, values.detach().clamp(*bounds))


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("bounds", [(0.0, math.inf), (-math.inf, math.inf), (0.0, 2.0)])
def test_values_and_gradients_are_their_formula_in_float64(bounds: tuple[float, float]) -> None:
    random = torch.Generator().manual_seed(0)
    made = [torch.randn(4, 3, 5, 6, generator=random) * 2 for _ in range(3)]
    values, target, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in made)
    # Neither is open at its bounds, where a dead channel stands.
    values[0, 0] = 0.0
    scale, zero_point = torch.tensor(0.3), torch.tensor(5.3)
    leaves = [tensor.clone().requires_grad_() for tensor in (values, scale, zero_point)]
    rounded, error = measured_fake_quantize(leaves[0], target, leaves[1], leaves[2], bounds, (0, 15))
    ((rounded * weight).sum() + 3 * error).backward()

    exact, step = values.double().requires_grad_(), float(scale)
    feature = clipped(exact, bounds)
    expected_error = (feature - target.double()).square().sum() / target.double().square().sum()
    codes = (feature.detach() / scale.double()).round()
    limited = codes.clamp(-5, 10)
    inside = codes == limited
    # Inside the grid's range rounding passes the gradient on.
    passed = limited * step + (feature - feature.detach()) * inside
    ((passed * weight.double()).sum() + 3 * expected_error).backward()
    to_scale = torch.where(inside, codes - feature.detach() / scale.double(), limited)

    torch.testing.assert_close(rounded.double(), limited * scale.double(), rtol=1e-5, atol=1e-5)
    assert float(error) == pytest.approx(float(expected_error), rel=1e-4)
    torch.testing.assert_close(leaves[0].grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
    assert float(leaves[1].grad) == pytest.approx(float((to_scale * weight).sum()), rel=1e-3)
    assert float(leaves[2].grad) == pytest.approx(float((-step * weight * ~inside).sum()), rel=1e-3, abs=1e-4)


@pytest.mark.usefixtures("arithmetic")
def test_bfloat16_values_keep_their_type() -> None:
    values = (torch.arange(-20, 40) * 0.3).to(torch.bfloat16).requires_grad_()
    rounded, error = measured_fake_quantize(
        values,
        torch.zeros(60).add(0.5).to(torch.bfloat16),
        torch.tensor(0.5),
        torch.tensor(0.0),
        (0.0, math.inf),
        (0, 15),
    )
    (rounded.sum() + error).backward()
    assert (rounded.dtype, error.dtype, values.grad.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("protocol", ["deploy", "gdfq", "genie"])
@pytest.mark.parametrize("network", [Residual, Concatenating, SqueezeExcite, Normalized])
def test_the_view_gives_the_logits_and_the_errors_of_every_feature(network: type, protocol: str) -> None:
    options = make_options(bits="w4a4", input_shape=(3, 8, 8), protocol=protocol)
    prepared = prepare(trained(network()), options)
    quantized = prepared.quantized
    names = [node.name for node in integer_tensors(prepared.folded.graph) if node.op != "placeholder"]
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    _, targets = with_outputs(prepared.folded, names)(images)
    logits, features = with_outputs(quantized, names)(images)
    last = names[-1]
    before = {name: tensor.clone() for name, tensor in quantized.state_dict().items()}
    found, errors, (embedding,) = with_feature_errors(quantized, names, [last])(images, *targets)
    torch.testing.assert_close(found, logits)
    torch.testing.assert_close(embedding, features[-1])
    expected = [relative_error(feature, target) for feature, target in zip(features, targets, strict=True)]
    torch.testing.assert_close(torch.stack(errors), torch.stack(expected))
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantized.state_dict().items())
    (torch.stack(errors).sum() + found.sum()).backward()
    assert all(parameter.grad is not None for name, parameter in quantized.named_parameters() if "layers" in name)
