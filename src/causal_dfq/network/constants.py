"""What a graph computes of constants alone: once instead of for every batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from causal_dfq.network.operations import attribute, operation_name

_NAME = "constant_"
# They read nothing of a tensor but its type and its device.
_FACTORIES = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})
# They read nothing, and would stay on the device that the network was captured on.
_SOURCES = frozenset({"arange", "eye", "full", "linspace", "ones", "scalar_tensor", "zeros"})


@torch.no_grad()
def fold_constants(module: fx.GraphModule) -> None:
    """Replaces what is computed of parameters and buffers alone by its value, in place.

    So a layer whose weight the forward computes (weight standardization, weight norm) has a plain one, and masks and
    tables of positions are tensors. Random numbers stay as they are.
    """
    values: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = attribute(module, str(node.target))
        elif _is_constant(node, values):
            arguments = fx.map_arg((node.args, node.kwargs), lambda source: _value(source, values))
            values[node] = node.target(*arguments[0], **arguments[1])
    for number, node in enumerate([node for node in values if node.op == "call_function"]):
        if isinstance(values[node], Tensor) and any(user not in values for user in node.users):
            name = f"{_NAME}{number}"
            module.register_buffer(name, values[node].detach().clone())
            with module.graph.inserting_before(node):
                stored = module.graph.get_attr(name)
            stored.meta = dict(node.meta)
            for user in list(node.users):
                if user not in values:
                    user.replace_input_with(node, stored)


def _is_constant(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return False
    if operation_name(node) in _FACTORIES:
        return all(source is node.args[0] for source in node.all_input_nodes)
    if operation_name(node) in _SOURCES:
        return not node.all_input_nodes
    return bool(node.all_input_nodes) and all(source in values for source in node.all_input_nodes)


def _value(source: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """A constant; of another tensor its type, which is what factories look at."""
    return values[source] if source in values else torch.empty(0, dtype=source.meta["val"].dtype)
