"""Regions of a captured graph that torch.export keeps in graphs of their own, such as those without autocast."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from causal_dfq.errors import CaptureError
from causal_dfq.network.operations import attribute, module_path

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_REGIONS = frozenset({_AUTOCAST, torch.ops.higher_order.wrap_with_set_grad_enabled})


def inline_regions(module: fx.GraphModule) -> None:
    """Puts the operations of every region in its place, in place.

    A graph that is captured in float32 computes the same without them; inside, no layer would be seen.

    Raises:
        CaptureError: a region computes in lower precision on the CPU.
    """
    while regions := [node for node in module.graph.nodes if node.target in _REGIONS]:
        for region in regions:
            if region.target == _AUTOCAST and region.args[0] == "cpu" and region.args[2]:
                raise CaptureError(
                    f"the forward of {module_path(region)} switches autocast to {region.args[1]} on; the network is "
                    "captured in float32: take the autocast out of the forward"
                )
            _inline(module, region)
    module.graph.eliminate_dead_code()


def _inline(module: fx.GraphModule, region: fx.Node) -> None:
    place = next(index for index, argument in enumerate(region.args) if _is_graph(module, argument))
    name = str(region.args[place].target)  # type: ignore[union-attr]
    inner: fx.GraphModule = attribute(module, name)
    operands = iter(region.args[place + 1 :])
    values: dict[fx.Node, Any] = {}
    with module.graph.inserting_before(region):
        for node in inner.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(operands)
            elif node.op != "output":
                values[node] = module.graph.node_copy(node, values.__getitem__)
                if node.op == "get_attr":
                    values[node].target = f"{name}.{node.target}"
    results = fx.map_arg(next(node for node in inner.graph.nodes if node.op == "output").args[0], values.__getitem__)
    for user in list(region.users):
        if isinstance(results, tuple | list) and user.target is operator.getitem:
            user.replace_all_uses_with(results[int(user.args[1])])  # type: ignore[arg-type]
            module.graph.erase_node(user)
    if region.users:
        region.replace_all_uses_with(results)
    module.graph.erase_node(region)


def _is_graph(module: fx.GraphModule, argument: object) -> bool:
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return False
    return isinstance(attribute(module, str(argument.target)), fx.GraphModule)
