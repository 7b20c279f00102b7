"""An integer graph as torch's exporter writes it in ONNX, and which operation it fails on."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from causal_dfq.errors import ExportError
from causal_dfq.export.operators import IN_ONNX
from causal_dfq.network.error_text import first_line
from causal_dfq.network.operations import module_path

INPUT, OUTPUT = "images", "logits"


def translated(graph: fx.GraphModule, input_shape: tuple[int, int, int], opset: int) -> ir.Model:
    """The model of a graph: images (N, C, H, W) -> logits (N, K), the batch open.

    Raises:
        ExportError: an operation has no form in ONNX; the message names it.
    """
    # Two images: a batch of one would be taken for a constant.
    images = torch.zeros(2, *input_shape)
    names = {"input_names": [INPUT], "output_names": [OUTPUT]}
    try:
        model = _written(graph, (images,), opset, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), **names)
    except Exception as error:
        node = _unwritable_operation(graph, images, opset)
        if node is not None:
            raise ExportError(
                f"{node.target} at {module_path(node)} has no form in ONNX: replace it in the network, quantize again"
            ) from error
        raise ExportError(f"the network cannot be written as ONNX: {first_line(error.__cause__ or error)}") from error
    _use_global_pools(model)
    for written in model.graph.all_nodes():
        # Where the exporter met it: paths of this machine.
        written.metadata_props.clear()
    return model


def _use_global_pools(model: ir.Model) -> None:
    """Means over all places as the operator that runtimes compute in integers; the exporter writes a reduction."""
    for node in list(model.graph):
        if not _is_global_mean(node):
            continue
        pool = ir.node("GlobalAveragePool", [node.inputs[0]])
        (old,), (new,) = node.outputs, pool.outputs
        new.name, new.shape, new.type = old.name, old.shape, old.type
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [pool], [old], [new])


def _is_global_mean(node: ir.Node) -> bool:
    if node.op_type != "ReduceMean" or len(node.inputs) != 2:
        return False
    values, axes = node.inputs
    keepdims = node.attributes.get("keepdims")
    if values is None or values.shape is None or len(values.shape) != 4:
        return False
    if axes is None or axes.const_value is None or (keepdims is not None and keepdims.as_int() == 0):
        return False
    return {int(axis) % 4 for axis in axes.const_value.numpy()} == {2, 3}


def _written(module: fx.GraphModule, inputs: tuple[Tensor, ...], opset: int, **choices: Any) -> ir.Model:
    with _silent():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            custom_translation_table=IN_ONNX,
            **choices,
        )
    assert program is not None
    return program.model


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The exporter talks on every channel."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _unwritable_operation(graph: fx.GraphModule, images: Tensor, opset: int) -> fx.Node | None:
    """The first operation that the exporter cannot write where it stands alone."""
    values = _ValuesOfNodes(graph)
    try:
        with torch.no_grad():
            values.run(images)
    except Exception:
        return None
    written: set[str] = set()
    for node in graph.graph.nodes:
        # The same operation may have a form for some arguments alone.
        call = f"{node.target} {_plain_arguments(node)}"
        if node.op != "call_function" or call in written or not _stands_alone(node, values.found):
            continue
        try:
            _written(*_alone(node, values.found), opset)
        except Exception:
            return node  # type: ignore[no-any-return]
        written.add(call)
    return None


class _ValuesOfNodes(fx.Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """A node's value."""
        self.found[n] = super().run_node(n)
        return self.found[n]


def _stands_alone(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Whether an operation makes tensors of tensors and numbers: a list of tensors is no input of a network."""
    read = [values[source] for source in node.all_input_nodes]
    made = values[node] if isinstance(values[node], list | tuple) else [values[node]]
    are_tensors = all(isinstance(value, Tensor) for value in made)
    return are_tensors and not any(isinstance(value, list | tuple) for value in read)


def _plain_arguments(node: fx.Node) -> str:
    return str(fx.node.map_arg((node.args, node.kwargs), lambda source: "tensor"))


def _alone(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """An operation as a network of its own, and what it reads."""
    graph = fx.Graph()
    tensors = [source for source in node.all_input_nodes if isinstance(values[source], Tensor)]
    inputs = {source: graph.placeholder(source.name) for source in tensors}
    copied = graph.node_copy(node, lambda source: inputs.get(source, values[source]))
    made = values[node]
    if isinstance(made, list | tuple):
        graph.output(tuple(graph.call_function(operator.getitem, (copied, number)) for number in range(len(made))))
    else:
        graph.output(copied)
    return fx.GraphModule(nn.Module(), graph), tuple(values[source] for source in tensors)
