"""What is reconstructed together: parts of the graph that one tensor enters and one tensor leaves."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from torch import fx

from causal_dfq.network.operations import is_weight_layer, operation_name


@dataclass(frozen=True)
class Unit:
    """A part of a network, by names of nodes.

    Args:
        source: the tensor that enters.
        result: the tensor that leaves; everything after it depends on the images through it alone.
        layers: the convolutions and linear layers in between, at least one.
    """

    source: str
    result: str
    layers: tuple[str, ...]


def network_units(module: fx.GraphModule, tensors: Container[fx.Node]) -> list[Unit]:
    """The network as a chain of the smallest units between the given tensors, each with a layer.

    A residual block, an inception block or a dense block is one unit; along a plain chain every layer is.

    Args:
        module: images -> logits.
        tensors: where a unit may begin and end, besides the images and the logits.

    Source: block-wise units as in Li et al., "BRECQ" (ICLR 2021); that they come from the graph is [ours].
    """
    nodes = list(module.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    carries_data = _data_nodes(nodes)
    images = next(node for node in nodes if node.op == "placeholder")
    batch = images.meta["val"].shape[0]
    cuts = [node for node in _cuts(nodes, carries_data) if node in tensors and node.meta["val"].shape[0] == batch]
    logits = next(node for node in nodes if node.op == "output").args[0]
    assert isinstance(logits, fx.Node)
    chain = [images, *(node for node in cuts if node not in (images, logits)), logits]
    units: list[Unit] = []
    source = images
    for result in chain[1:]:
        between = nodes[place[source] + 1 : place[result] + 1]
        layers = tuple(node.name for node in between if is_weight_layer(node))
        if layers:
            units.append(Unit(source.name, result.name, layers))
        elif result is logits and units:
            # What follows the last layer belongs to its unit.
            units[-1] = Unit(units[-1].source, logits.name, units[-1].layers)
        else:
            continue
        source = result
    return units


def part_between(module: fx.GraphModule, source: str, result: str) -> fx.GraphModule:
    """The graph from one tensor to another as a module of its own: value of `source` -> value of `result`.

    Parameters and submodules are shared with `module`.

    Raises:
        ValueError: `result` depends on the images in another way than through `source`.
    """
    by_name = {node.name: node for node in module.graph.nodes}
    first, last = by_name[source], by_name[result]
    needed: set[fx.Node] = set()
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node in needed or node is first:
            continue
        if node.op == "placeholder":
            raise ValueError(f"{result} depends on {node.name} past {source}")
        needed.add(node)
        if not _is_size(node):
            waiting.extend(node.all_input_nodes)
    graph = fx.Graph()
    copies = {first: graph.placeholder(source)}
    copies[first].meta = dict(first.meta)
    for node in module.graph.nodes:
        if node in needed and _is_size(node):
            # The size of the batch, which every tensor of the chain has.
            copies[node] = graph.call_function(node.target, (copies[first], *node.args[1:]))
        elif node in needed:
            copies[node] = graph.node_copy(node, lambda original: copies[original])
    graph.output(copies[last])
    part = fx.GraphModule(module, graph)
    part.train(module.training)
    return part


def _data_nodes(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on the images."""
    found: set[fx.Node] = set()
    for node in nodes:
        depends = any(source in found for source in node.all_input_nodes)
        if node.op == "placeholder" or (depends and not _is_size(node)):
            found.add(node)
    return found


def _is_size(node: fx.Node) -> bool:
    """Whether a node is the number of images, as `x.view(x.size(0), -1)` reads it."""
    return operation_name(node) == "sym_size"


def _cuts(nodes: list[fx.Node], carries_data: set[fx.Node]) -> list[fx.Node]:
    """The tensors that at some place of the order are all that is still needed, in order."""
    place = {node: index for index, node in enumerate(nodes)}
    cuts: list[fx.Node] = []
    live: set[fx.Node] = set()
    for index, node in enumerate(nodes):
        if node not in carries_data or node.op == "output":
            continue
        live.add(node)
        live = {kept for kept in live if any(place[user] > index for user in kept.users if user in carries_data)}
        if len(live) == 1:
            (only,) = live
            if only not in cuts:
                cuts.append(only)
    return cuts
