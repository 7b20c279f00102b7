"""A graph as JSON: back to the bit, and nothing in it that could run."""

import pytest
import torch
from torch import Tensor, fx, nn

from causal_dfq.errors import OutputError
from causal_dfq.network.capture import capture
from causal_dfq.network.fold import fold_batch_norm
from causal_dfq.network.serialize import graph_from_data, graph_to_data
from tests.networks import ALL, trained

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module", params=ALL, ids=lambda network: network.__name__)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return trained(request.param())


def images(count: int = 5) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_graph_survives_json_to_the_bit(network: nn.Module) -> None:
    folded = fold_batch_norm(capture(network, SHAPE))
    graph = graph_from_data(graph_to_data(folded.graph))
    rebuilt = torch.fx.GraphModule(folded, graph)
    assert torch.equal(rebuilt(images()), folded(images()))


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "operator.attrgetter", "aten.__class__.default", "aten.save.default"]
)
def test_saved_graph_cannot_name_other_functions(target: str) -> None:
    data = [{"name": "x", "op": "call_function", "target": target, "args": ["echo"], "kwargs": {"dict": {}}}]
    with pytest.raises(OutputError, match="cannot be read"):
        graph_from_data(data)


@pytest.mark.parametrize(
    "change",
    [
        {"op": "call_method"},
        {"op": "root"},
        {"name": "x; import os"},
        {"name": "lambda"},
        {"op": "placeholder", "target": "x=print(1)"},
        {"op": "placeholder", "target": "*x"},
        {"op": "get_attr", "target": 'layers.a") or print("'},
        {"op": "call_module", "target": "layers..weight"},
        {"op": "output", "target": "print(1)"},
        {"kwargs": {"dict": {"dim=print(1), other": 1}}},
        {"args": [{"device": "nowhere"}]},
    ],
    ids=str,
)
def test_saved_graph_cannot_hold_source_code(change: dict[str, object]) -> None:
    node = {"name": "x", "op": "call_function", "target": "aten.relu.default", "args": [], "kwargs": {"dict": {}}}
    graph_from_data([node])
    with pytest.raises(OutputError, match="cannot be read"):
        graph_from_data([node | change])


def test_names_that_are_no_words_of_python_are_saved_and_read() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    network.add_module("ln-1 (last)", nn.LayerNorm(144))
    network.add_module("fc", nn.Linear(144, 5))
    graph = capture(trained(network), SHAPE)
    again = graph_from_data(graph_to_data(graph.graph))
    torch.testing.assert_close(fx.GraphModule(graph, again)(images()), network(images()))
