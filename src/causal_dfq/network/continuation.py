"""A network run up to a layer once, and from there on as often as that layer changes. [ours]"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx


class Continuation:
    """What a network makes of images, layer by layer: what comes before a layer is computed once.

    A layer that is tried with several weights, each layer alone, costs half of what whole runs would.

    Args:
        network: one input, and a tensor (N, ...) as its result.
        images: (N, ...); `largest_chunk` of them run at a time.
    """

    def __init__(self, network: fx.GraphModule, images: Tensor, largest_chunk: int) -> None:
        self._interpreter = fx.Interpreter(network)
        (image,) = network.graph.find_nodes(op="placeholder")
        self._rest = [node for node in network.graph.nodes if node is not image]
        self._values: list[dict[fx.Node, Any]] = [{image: chunk} for chunk in images.split(largest_chunk)]

    @torch.no_grad()
    def advance_to(self, layer: str) -> None:
        """Runs everything before a layer; layers come in the order of the graph."""
        before = list(takewhile(lambda node: node.name != layer, self._rest))
        self._rest = self._rest[len(before) :]
        for values in self._values:
            self._run(before, values)

    @torch.no_grad()
    def result(self) -> Tensor:
        """The network's result (N, ...) with its weights as they are now, from the layer on."""
        parts = [self._run(self._rest, dict(values)) for values in self._values]
        return torch.cat(parts)

    def _run(self, nodes: Iterable[fx.Node], values: dict[fx.Node, Any]) -> Any:
        value = None
        self._interpreter.env = values
        for node in nodes:
            value = values[node] = self._interpreter.run_node(node)
            for read in self._interpreter.user_to_last_uses.get(node, ()):
                del values[read]
        return value
