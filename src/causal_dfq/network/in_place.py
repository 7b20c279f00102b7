"""Calls that write into a tensor: what they would be without, and whether others see what they wrote."""

from __future__ import annotations

import torch
from torch import fx

from causal_dfq.network.operations import aten

# In evaluation mode they hand on the tensor itself, which their schemas do not tell.
_IDENTITIES = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})


def functional_overload(target: object) -> object | None:
    """aten.relu_.default -> aten.relu.default; None for a call that changes nothing in place, or has no such twin."""
    if not _is_in_place(target):
        return None
    packet = getattr(aten, _packet_name(target).removesuffix("_"), None)
    return getattr(packet, target._overloadname, None)  # type: ignore[attr-defined]


def writes_through_views(module: torch.nn.Module) -> bool:
    """Whether to replace calls in place by their functional twins would change what the network computes.

    It would where a call writes into memory that is read later under another name: into a view of a tensor, or into a
    tensor that has views; and where there is no twin.
    """
    assert isinstance(module, fx.GraphModule)
    # Names of the same memory, and of the same tensor: a result in place is its argument by another name.
    memory: dict[fx.Node, fx.Node] = {}
    tensor: dict[fx.Node, fx.Node] = {}
    places = {node: place for place, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        writes = node.op == "call_function" and _is_in_place(node.target)
        tensor[node] = tensor[source] if writes and source is not None else node
        memory[node] = memory[source] if source is not None and (writes or _hands_memory_on(node)) else node
        if not writes or source is None:
            continue
        if functional_overload(node.target) is None:
            return True
        others = [name for name in memory if memory[name] is memory[source] and tensor[name] is not tensor[source]]
        if any(places[user] > places[node] for name in others for user in name.users):
            return True
    return False


def _packet_name(target: object) -> str:
    return str(getattr(getattr(target, "overloadpacket", None), "__name__", ""))


def _is_in_place(target: object) -> bool:
    name = _packet_name(target)
    return name.endswith("_") and not name.endswith("__")


def _hands_memory_on(node: fx.Node) -> bool:
    """Whether the result may lie in the memory of the first argument."""
    if node.op != "call_function":
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        # An item of several results.
        return True
    return node.target in _IDENTITIES or any(result.alias_info is not None for result in schema.returns)
