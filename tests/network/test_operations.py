"""What a node of a captured graph means."""

import math

import pytest
from torch import fx

from causal_dfq.network.operations import aten, clipping_bounds


@pytest.mark.parametrize(
    ("target", "arguments", "expected"),
    [
        (aten.relu.default, (), (0.0, math.inf)),
        (aten.relu6.default, (), (0.0, 6.0)),
        (aten.hardtanh.default, (), (-1.0, 1.0)),
        (aten.hardtanh.default, (0, 6), (0.0, 6.0)),
        (aten.clamp.default, (0,), (0.0, math.inf)),
        (aten.clamp.default, (None, 4), (-math.inf, 4.0)),
        (aten.clamp_min.default, (0.5,), (0.5, math.inf)),
        (aten.silu.default, (), None),
        (aten.add.Tensor, (1,), None),
    ],
)
def test_clipping_bounds_are_those_of_the_operation(
    target: object, arguments: tuple[object, ...], expected: tuple[float, float] | None
) -> None:
    graph = fx.Graph()
    values = graph.placeholder("values")
    assert clipping_bounds(graph.call_function(target, (values, *arguments))) == expected


def test_bounds_that_are_computed_are_not_known() -> None:
    graph = fx.Graph()
    values, bound = graph.placeholder("values"), graph.placeholder("bound")
    assert clipping_bounds(graph.call_function(aten.clamp.default, (values, bound))) is None
