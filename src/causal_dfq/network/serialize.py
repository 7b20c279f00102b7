"""A graph of tensor operations as plain data: JSON in, JSON out, no code is ever run to read it."""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
from torch import fx

from causal_dfq.errors import OutputError
from causal_dfq.network.operations import aten_overload, is_identifier, module_path

_OPERATORS = {
    name: getattr(operator, name) for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg")
}
_OPERATIONS = frozenset({"placeholder", "get_attr", "call_module", "call_function", "output"})
# What is no word torch writes into source code between double quotes.
_DOTTED_NAME = re.compile(r'[^".\\\x00-\x1f\x7f]+(\.[^".\\\x00-\x1f\x7f]+)*')
_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def graph_to_data(graph: fx.Graph) -> list[dict[str, Any]]:
    """The nodes in order, each with its operation, target and arguments, and where it is in the user's network.

    Raises:
        OutputError: the graph calls something else than an ATen operation.
    """
    return [
        {
            "name": node.name,
            "op": node.op,
            "target": _target_to_text(node),
            "args": _encode(node.args),
            "kwargs": _encode(node.kwargs),
            **({"path": module_path(node)} if node.meta.get("nn_module_stack") else {}),
        }
        for node in graph.nodes
    ]


def is_storable(node: fx.Node) -> bool:
    """Whether `graph_to_data` takes a node: an operation of ATen, or on numbers, with plain arguments."""
    try:
        _target_to_text(node)
        _encode((node.args, node.kwargs))
    except OutputError:
        return False
    return True


def graph_from_data(data: list[dict[str, Any]]) -> fx.Graph:
    """The graph that `graph_to_data` described.

    Raises:
        OutputError: an entry is malformed, or names an operation that this version of torch lacks.
    """
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    try:
        for entry in data:
            _check_names(entry)
            target = _call_target(entry["target"]) if entry["op"] == "call_function" else entry["target"]
            args = tuple(_decode(entry["args"], nodes))
            kwargs = _keywords(entry["kwargs"], nodes)
            node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
            if isinstance(entry.get("path"), str):
                node.meta["nn_module_stack"] = {"": (entry["path"], "")}
            nodes[entry["name"]] = node
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, AssertionError) as error:
        raise OutputError(f"the saved graph cannot be read: {error!r}; quantize the network again") from error
    return graph


def _check_names(entry: dict[str, Any]) -> None:
    """Refuses what torch would write unquoted into the source code that it makes of the graph."""
    operation, target = entry["op"], entry["target"]
    if operation not in _OPERATIONS:
        raise ValueError(f"unknown kind of node {operation!r}")
    if not is_identifier(entry["name"]):
        raise ValueError(f"{entry['name']!r} is no name of a node")
    if operation == "placeholder" and not is_identifier(target):
        raise ValueError(f"{target!r} is no name of an input")
    if operation in ("get_attr", "call_module") and not _DOTTED_NAME.fullmatch(target):
        raise ValueError(f"{target!r} is no name of a parameter or module")
    if operation == "output" and target != "output":
        raise ValueError(f"{target!r} is no name of the output")


def _keywords(value: Any, nodes: dict[str, fx.Node]) -> dict[str, Any]:
    keywords = _decode(value, nodes)
    for name in keywords:
        if not is_identifier(name):
            raise ValueError(f"{name!r} is no name of an argument")
    return dict(keywords)


def _target_to_text(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return str(node.target)
    name = getattr(node.target, "__name__", str(node.target))
    if _OPERATORS.get(name) is node.target:
        return f"operator.{name}"
    raise OutputError(f"the operation {node.target} at {node.name!r} cannot be saved: it is no ATen operation")


def _call_target(text: str) -> Any:
    namespace, _, rest = text.partition(".")
    if namespace == "operator":
        return _OPERATORS[rest]
    if namespace != "aten":
        raise ValueError(f"unknown operation {text!r}")
    packet, _, overload = rest.rpartition(".")
    return aten_overload(packet, overload)


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_encode(value.start), _encode(value.stop), _encode(value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, torch.memory_format | torch.layout):
        return {"torch": str(value).removeprefix("torch.")}
    raise OutputError(f"an argument of type {type(value).__name__} cannot be saved")


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "float":
        return float.fromhex(content)
    if kind == "dict":
        return {key: _decode(item, nodes) for key, item in content.items()}
    if kind == "slice":
        return slice(*(_decode(item, nodes) for item in content))
    if kind == "dtype":
        return _DTYPES[content]
    if kind == "device":
        return torch.device(content)
    if kind == "torch" and content in {"channels_last", "contiguous_format", "preserve_format", "strided"}:
        return getattr(torch, content)
    raise ValueError(f"unknown argument kind {kind!r}")
