"""One capture, folded: the same function, whatever the forward looks like."""

import copy

import pytest
import torch
from torch import Tensor, nn

from causal_dfq.errors import CaptureError, OutputError, WeightsError
from causal_dfq.network.capture import capture
from causal_dfq.network.fold import fold_batch_norm
from causal_dfq.network.operations import batch_norm_nodes, with_outputs
from causal_dfq.network.serialize import graph_from_data, graph_to_data
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


def test_graph_survives_json_to_the_bit(network: nn.Module) -> None:
    folded = fold_batch_norm(capture(network, SHAPE))
    graph = graph_from_data(graph_to_data(folded.graph))
    rebuilt = torch.fx.GraphModule(folded, graph)
    assert torch.equal(rebuilt(images()), folded(images()))


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "operator.attrgetter", "aten.__class__.default"])
def test_saved_graph_cannot_name_other_functions(target: str) -> None:
    data = [{"name": "x", "op": "call_function", "target": target, "args": ["echo"], "kwargs": {"dict": {}}}]
    with pytest.raises(OutputError, match="cannot be read"):
        graph_from_data(data)
