"""Swing convolution: strided convolutions of P start at a random place, so that no grid of theirs is printed on images.

Source: GENIE (Jeon et al., CVPR 2023), section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from causal_dfq.fusion import with_gradient_in_channels_last
from causal_dfq.network.operations import CONVOLUTIONS

SWINGS = "swings"


class Swing(nn.Module):
    """Shifts a map by up to stride - 1 places each way, its border reflected; drawn anew at each call."""

    def __init__(self, stride: tuple[int, int], random: torch.Generator) -> None:
        super().__init__()
        self.reach = tuple(step - 1 for step in stride)
        self._random = random

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        height, width = features.shape[2:]
        down, right = (min(reach, side - 1) for reach, side in zip(self.reach, (height, width), strict=True))
        padded = with_gradient_in_channels_last(functional.pad(features, (right, right, down, down), mode="reflect"))
        top = int(torch.randint(2 * down + 1, (), generator=self._random))
        left = int(torch.randint(2 * right + 1, (), generator=self._random))
        return padded[:, :, top : top + height, left : left + width]


def with_swing(view: fx.GraphModule, random: torch.Generator) -> fx.GraphModule:
    """The view with a swing before each strided two-dimensional convolution; parameters are shared."""
    graph = fx.Graph()
    result = graph.graph_copy(view.graph, {})
    graph.output(result)
    swung = fx.GraphModule(view, graph)
    swung.add_module(SWINGS, nn.Module())
    for node in list(swung.graph.nodes):
        stride = _stride(node)
        if stride is None:
            continue
        swung.get_submodule(SWINGS).add_module(node.name, Swing(stride, random))
        source = node.args[0]
        with swung.graph.inserting_before(node):
            shifted = swung.graph.call_module(f"{SWINGS}.{node.name}", (source,))
        shifted.meta = dict(source.meta)
        node.replace_input_with(source, shifted)
    swung.recompile()
    swung.train(view.training)
    return swung


def _stride(node: fx.Node) -> tuple[int, int] | None:
    """The stride of a two-dimensional convolution that has one above 1."""
    if node.op != "call_function" or node.target not in CONVOLUTIONS or len(node.args) < 4:
        return None
    given = node.args[3]
    steps = [int(step) for step in given] if isinstance(given, list | tuple) else [int(given)]  # type: ignore[arg-type]
    steps = steps * 2 if len(steps) == 1 else steps
    value = node.meta.get("val")
    is_map = isinstance(value, Tensor) and value.ndim == 4
    return (steps[0], steps[1]) if is_map and len(steps) == 2 and max(steps) > 1 else None
