"""Feature maps and gradients lie in channels_last: in the default format a step takes several times longer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from causal_dfq.config import make_options
from causal_dfq.pipeline import prepare, resolve_device, start_run
from tests.networks import ALL, Grouped, trained

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


class ConvolutionFormats(TorchDispatchMode):
    """Notes each feature map that a convolution, or its gradient, reads or writes in another format."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.others: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in CONVOLUTIONS:
            maps = args[:1] if func == aten.convolution.default else args[:2]
            for values in [*maps, *tree_leaves(result)[:1]]:
                if isinstance(values, Tensor) and values.ndim == 4:
                    self.note(str(func), values)
        return result

    def note(self, name: str, values: Tensor) -> None:
        self.seen += 1
        # A single place, or a single channel, lies in both formats at once.
        if not values.is_contiguous(memory_format=torch.channels_last) and min(values.shape[1:]) > 1:
            self.others.append((name, tuple(values.shape), values.stride()))


@pytest.mark.parametrize("network", [*ALL, Grouped])
def test_both_steps_convolve_in_channels_last(network: type) -> None:
    options = make_options(bits="w4a4", input_shape=(3, 16, 16))
    run = start_run(prepare(trained(network()), options), options, resolve_device("cpu"))
    run.calibrate()
    batch = run.student_batch()
    for loss in (lambda: run.synthesis.loss(run.recipe, run.random), lambda: run.student_loss(batch)):
        with ConvolutionFormats() as formats:
            loss()[0].backward()
        assert formats.seen >= 10
        assert formats.others == []


class Volume(nn.Module):
    """A convolution over three dimensions, as lambda networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 64, 3, 4, 1), nn.BatchNorm2d(64)
        self.volume, self.fc = nn.Conv3d(1, 16, (9, 9, 1), padding=(4, 4, 0), bias=False), nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.conv(images)))
        return self.fc(self.volume(features.permute(0, 2, 3, 1)[:, None]).mean((2, 3, 4)))


def test_a_convolution_over_three_dimensions_has_a_finite_gradient() -> None:
    options = make_options(bits="w8a8", input_shape=(3, 16, 16))
    run = start_run(prepare(trained(Volume()), options), options, resolve_device("cpu"))
    run.calibrate()
    run.student_loss(run.student_batch())[0].backward()
    gradients = [parameter.grad for name, parameter in run.quantized.named_parameters() if "conv3d.weight" in name]
    assert len(gradients) == 1
    assert bool(gradients[0].isfinite().all())


def strides(values: Tensor) -> list[int]:
    """Of the dimensions that have more than one place: those of the others say nothing."""
    return [stride for stride, size in zip(values.stride(), values.shape, strict=True) if size > 1]


@pytest.mark.parametrize("network", ALL)
def test_gradients_lie_as_their_parameters_do(network: type) -> None:
    # Fused Adam walks through both in memory order, and does not look.
    options = make_options(bits="w4a4", input_shape=(3, 16, 16))
    run = start_run(prepare(trained(network()), options), options, resolve_device("cpu"))
    run.calibrate()
    run.warm_up(0.0)
    run._train_student(1.0)
    for optimizer in (run.synthesis.optimizer, run.student_optimizer):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moved = [parameter for parameter in parameters if parameter.grad is not None]
        assert len(moved) > 4
        for parameter in moved:
            moment = optimizer.state[parameter]["exp_avg"]
            assert strides(parameter) == strides(parameter.grad) == strides(moment)


def test_the_guard_sees_the_default_format() -> None:
    with ConvolutionFormats() as formats:
        torch.conv2d(torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3))
    assert formats.others
