"""One capture, folded: the same function, whatever the forward looks like."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_dfq.errors import CaptureError, WeightsError
from causal_dfq.network.capture import capture
from causal_dfq.network.error_text import failing_line
from causal_dfq.network.fold import fold_batch_norm
from causal_dfq.network.operations import (
    batch_norm_nodes,
    with_outputs,
)
from tests.networks import ALL, Concatenating, Residual, Reused, SqueezeExcite, trained

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module", params=ALL, ids=lambda network: network.__name__)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return trained(request.param())


def images(count: int = 5) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_capture_gives_the_same_logits_at_another_batch_size(network: nn.Module) -> None:
    torch.testing.assert_close(capture(network, SHAPE)(images(7)), network(images(7)), rtol=0, atol=1e-6)


def test_folded_network_gives_the_same_logits(network: nn.Module) -> None:
    folded = fold_batch_norm(capture(network, SHAPE))
    torch.testing.assert_close(folded(images()), network(images()), rtol=1e-4, atol=1e-5)


def test_capture_leaves_the_network_as_it_was() -> None:
    network = trained(SqueezeExcite()).train()
    before = copy.deepcopy(network.state_dict())
    capture(network, SHAPE)
    assert network.training
    assert all(module.training for module in network.modules())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_foldable_norms_are_gone_and_others_stay() -> None:
    def norms(network: nn.Module) -> int:
        return len(batch_norm_nodes(fold_batch_norm(capture(trained(network), SHAPE)).graph))

    assert norms(Residual()) == 0
    assert norms(Reused()) == 0
    assert norms(Concatenating()) == 1


def test_captured_graph_works_in_channels_last() -> None:
    class Shuffling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            self.fc = nn.Linear(8, 5)

        def forward(self, images: Tensor) -> Tensor:
            features = self.conv(images)
            count, channels, height, width = features.shape
            features = features.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous()
            return self.fc(features.view(count, channels, height, width).mean((2, 3)))

    network = Shuffling().eval()
    inputs = images().contiguous(memory_format=torch.channels_last)
    captured = capture(network, SHAPE).to(memory_format=torch.channels_last)
    torch.testing.assert_close(captured(inputs), network(images()))


def test_wrong_input_shape_is_named() -> None:
    with pytest.raises(CaptureError, match=r"shape 1x8x8.*--input-shape"):
        capture(trained(Residual()), (1, 8, 8))


def test_branch_on_values_is_named_with_its_line() -> None:
    class Branching(Residual):
        def forward(self, images: Tensor) -> Tensor:
            if images.mean() > 0:
                return super().forward(images)
            return super().forward(-images)

    with pytest.raises(CaptureError, match=r"cannot be captured.*test_capture_and_fold\.py.*line"):
        capture(Branching(), SHAPE)


def test_output_that_is_no_logits_is_told() -> None:
    with pytest.raises(CaptureError, match=r"logits of shape \(N, classes\)"):
        capture(nn.Conv2d(3, 4, 3), SHAPE)


def test_infinite_weight_is_named() -> None:
    network = trained(Residual())
    with torch.no_grad():
        network.fc.weight[1, 2] = torch.inf
    with pytest.raises(WeightsError, match=r"1 NaN or infinite.*'fc\.weight'"):
        capture(network, SHAPE)


def test_view_returns_the_values_on_the_way() -> None:
    network = trained(Residual())
    captured = capture(network, SHAPE)
    name = batch_norm_nodes(captured.graph)[0].args[0].name
    logits, (value,) = with_outputs(captured, [name])(images())
    torch.testing.assert_close(value, network.conv1(images()))
    torch.testing.assert_close(logits, network(images()))


def test_write_into_a_slice_is_seen_by_who_reads_the_whole() -> None:
    class Slicing(Residual):
        def forward(self, images: Tensor) -> Tensor:
            images = images * 1
            images[:, :1] += 3 * images[:, 1:2]
            return super().forward(images)

    network = trained(Slicing())
    module = capture(network, SHAPE)
    torch.testing.assert_close(module(images()), network(images()), rtol=1e-4, atol=1e-5)
    names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    assert "aten.conv2d.default" in names
    assert len(batch_norm_nodes(module.graph)) == len(batch_norm_nodes(capture(trained(Residual()), SHAPE).graph))
    assert not any("_.Tensor" in name or name.endswith("_.default") for name in names)


def test_random_numbers_in_the_forward_are_refused() -> None:
    class Noisy(Residual):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + torch.randn_like(images))

    with pytest.raises(CaptureError, match=r"gives other logits than the network.*random numbers"):
        capture(trained(Noisy()), SHAPE)


def test_network_that_writes_into_its_input_is_captured() -> None:
    class Centering(Residual):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.sub_(0.5))

    network = trained(Centering())
    captured = capture(network, SHAPE)
    torch.testing.assert_close(captured(images()), network(images()))


class BatchStatistics(nn.Module):
    """One BatchNorm that takes its statistics from the batch, one of running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.bn1 = nn.BatchNorm2d(8, track_running_stats=False)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.bn1(self.conv1(images)))
        return self.fc(torch.relu(self.bn2(self.conv2(features))).mean((2, 3)))


def test_norm_of_batch_statistics_stays_and_does_not_count() -> None:
    torch.manual_seed(0)
    network = BatchStatistics().eval()
    network.bn2.running_mean.fill_(0.5)
    captured = capture(network, SHAPE)
    assert [node.args[0].name for node in batch_norm_nodes(captured.graph)] == ["conv2d_1"]
    folded = fold_batch_norm(captured)
    assert batch_norm_nodes(folded.graph) == []
    torch.testing.assert_close(folded(images()), network(images()), rtol=1e-4, atol=1e-5)


def test_norm_of_computed_scale_stays() -> None:
    class Scaled(Residual):
        def forward(self, images: Tensor) -> Tensor:
            norm = self.bn1
            scale = norm.weight * 2
            features = functional.batch_norm(
                self.conv1(images), norm.running_mean, norm.running_var, scale, norm.bias, False, 0.1, norm.eps
            )
            return self.fc(features.mean((2, 3)))

    network = trained(Scaled())
    folded = fold_batch_norm(capture(network, SHAPE))
    torch.testing.assert_close(folded(images()), network(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_network_that_cannot_be_copied_is_told() -> None:
    network = trained(Residual())
    nn.utils.weight_norm(network.conv2)
    with pytest.raises(CaptureError, match=r"cannot be copied: .*remove_weight_norm"):
        capture(network, SHAPE)


def test_layer_whose_weight_depends_on_the_image_is_named() -> None:
    class Dynamic(Residual):
        def forward(self, images: Tensor) -> Tensor:
            weight = self.conv2.weight * images.mean()
            return super().forward(images + functional.conv2d(images, weight[:3, :3], padding=1))

    with pytest.raises(CaptureError, match=r"computes its weight or bias from the image"):
        fold_batch_norm(capture(trained(Dynamic()), SHAPE))


def test_network_with_layers_of_its_own_is_folded() -> None:
    class Layered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
            self.fc = nn.Linear(4, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.layers(images).mean((2, 3)))

    network = trained(Layered())
    folded = fold_batch_norm(capture(network, SHAPE))
    torch.testing.assert_close(folded(images()), network(images()), rtol=1e-4, atol=1e-5)
    assert set(dict(folded.layers.named_children())) == {"conv2d", "conv2d_1", "linear"}


def test_module_of_symbolic_tracing_is_put_into_evaluation_mode() -> None:
    network = trained(SqueezeExcite())
    traced = copy.deepcopy(torch.fx.symbolic_trace(network)).train()
    torch.testing.assert_close(capture(traced, SHAPE)(images()), network(images()), rtol=1e-4, atol=1e-5)


def test_exported_module_inside_of_a_network_is_put_into_evaluation_mode() -> None:
    class Around(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.dropout = nn.Dropout(0.9)

        def forward(self, images: Tensor) -> Tensor:
            return self.dropout(self.inner(images))

    network = trained(SqueezeExcite())
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    inner = torch.export.export(network.train(), (images(2),), dynamic_shapes=dynamic).module()
    captured = capture(Around(inner), SHAPE)
    torch.testing.assert_close(captured(images()), network.eval()(images()), rtol=1e-4, atol=1e-5)


def test_shape_without_end_is_told() -> None:
    with pytest.raises(CaptureError, match=r"3x1073741824x1073741824 cannot be had.*--input-shape"):
        capture(trained(Residual()), (3, 2**30, 2**30))


def test_failing_line_is_found_in_a_folder_called_torch(tmp_path: Path) -> None:
    file = tmp_path / "torch" / "network.py"
    file.parent.mkdir()
    file.write_text("def forward():\n    raise ValueError(1)\n")
    specification = importlib.util.spec_from_file_location("network_in_torch", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    with pytest.raises(ValueError, match="1") as caught:
        module.forward()
    assert failing_line(caught.value) == f"{file}, line 2"


def test_failing_line_is_read_from_the_message_where_the_traceback_has_none() -> None:
    inside = f'File "{torch.__file__}", line 9, in call'
    error = RuntimeError(f'no trace\n  File "/home/user/net.py", line 12, in forward\n  {inside}')
    assert failing_line(error) == "/home/user/net.py, line 12"
    outer = RuntimeError("no trace")
    outer.__cause__ = error
    assert failing_line(outer) == "/home/user/net.py, line 12"
    assert failing_line(RuntimeError(inside)) == ""


class TokenNorm(nn.Module):
    """A BatchNorm whose channels are tokens, behind a linear layer."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.stem, self.linear, self.norm = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.BatchNorm1d(tokens)
        self.norm.weight.data = torch.linspace(0.5, 2, tokens)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        seen: Tensor = self.norm(self.linear(tokens))
        return seen.mean(1)


@pytest.mark.parametrize("shape", [(3, 8, 1), (3, 4, 4)], ids=["as many tokens as outputs", "more"])
def test_a_norm_over_tokens_is_not_folded_into_the_layer_of_each(shape: tuple[int, int, int]) -> None:
    network = TokenNorm(shape[1] * shape[2]).eval()
    images = torch.randn(4, *shape)
    assert torch.allclose(fold_batch_norm(capture(network, shape))(images), network(images), rtol=1e-4, atol=1e-5)


class LinearProbe(Residual):
    """Its head was trained alone: no gradient passes from it to the features."""

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv1(images).detach().mean((2, 3)))


def test_what_kept_gradients_from_a_part_does_not_keep_them_from_the_quantized_network() -> None:
    network = trained(LinearProbe())
    captured = capture(network, SHAPE)
    torch.testing.assert_close(captured(images()), network(images()), rtol=0, atol=1e-6)
    weight = captured.get_parameter("conv1.weight").requires_grad_()
    captured(images()).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0
