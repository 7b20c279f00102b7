"""What a graph computes of constants alone: once instead of for every batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from causal_dfq.network.operations import aten, attribute, has_float_value, operation_name

_NAME = "constant_"
# They read nothing of a tensor but its type and its device.
_FACTORIES = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})
# They read nothing, and would stay on the device that the network was captured on.
_SOURCES = frozenset({"arange", "eye", "full", "linspace", "ones", "scalar_tensor", "zeros"})

_BESIDE = {
    aten.zeros.default: aten.new_zeros.default,
    aten.ones.default: aten.new_ones.default,
    aten.full.default: aten.new_full.default,
    aten.empty.memory_format: aten.new_empty.default,
}
_NEUTRAL = {"mul": 1, "div": 1, "add": 0, "sub": 0}
_COMMUTING = frozenset({"mul", "add"})


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


def make_beside_images(module: fx.GraphModule) -> None:
    """Has tensors as large as the batch made on the device of the images, not on that of the capture, in place."""
    images = next(node for node in module.graph.nodes if node.op == "placeholder")
    for node in module.graph.nodes:
        factory = _BESIDE.get(node.target)
        if factory is not None and node.kwargs.get("device") is not None:
            node.target, node.args = factory, (images, *node.args)
            node.kwargs = {"dtype": node.meta["val"].dtype}


def drop_neutral_operations(module: fx.GraphModule) -> None:
    """Takes out multiplications by one and additions of zero, in place.

    Where two tensors of the same values have a grid each, a runtime may merge both grids into a third one.
    """
    for node in list(module.graph.nodes):
        neutral = _NEUTRAL.get(operation_name(node))
        if neutral is None or len(node.args) != 2 or node.kwargs:
            continue
        for value, constant in (node.args, node.args[::-1]) if operation_name(node) in _COMMUTING else (node.args,):
            if isinstance(value, fx.Node) and value.op != "get_attr" and _is_all(module, constant, neutral, value):
                node.replace_all_uses_with(value)
                module.graph.erase_node(node)
                break


def _is_all(module: fx.GraphModule, constant: Any, number: int, other: fx.Node) -> bool:
    """Whether a constant is that number everywhere, and would not make the other tensor larger."""
    if isinstance(constant, int | float):
        return constant == number and has_float_value(other)
    if not isinstance(constant, fx.Node) or constant.op != "get_attr":
        return False
    values, example = attribute(module, str(constant.target)), other.meta.get("val")
    if not isinstance(values, Tensor) or not isinstance(example, Tensor) or values.dtype != example.dtype:
        return False
    shape = example.shape
    if values.ndim > len(shape):
        return False
    fits = all(size in (1, whole) for size, whole in zip(reversed(values.shape), reversed(shape), strict=False))
    return fits and bool((values == number).all())


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
