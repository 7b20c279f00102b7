"""The quantized network as an ONNX file in QDQ form: what integer runtimes read.

Weights and biases are stored as integers; between a QuantizeLinear and its DequantizeLinear a tensor is in 8 bits.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, fx, nn

from causal_dfq.errors import ConfigError, ExportError, OutputError
from causal_dfq.export.fusion_report import Fusion, fusion_in_onnxruntime
from causal_dfq.export.integer_graph import integer_graph
from causal_dfq.export.operators import IN_ONNX
from causal_dfq.export.variants import with_reduced_weights, with_symmetric_activations
from causal_dfq.export.verify import Parity, synthetic_images, verify
from causal_dfq.files import write_atomically
from causal_dfq.network.operations import module_path
from causal_dfq.quantized import QuantizedNetwork
from causal_dfq.quantizer.affine import integer_range
from causal_dfq.version import __version__

Storage = Literal["fast", "packed"]
Profile = Literal["default", "tensorrt"]
INPUT, OUTPUT = "images", "logits"
VERIFIED_IMAGES = 64
_OPSET = 18


@dataclass(frozen=True)
class _Narrow:
    """A type below 8 bits, and the first opset that casts from it."""

    kind: ir.DataType
    opset: int


_NARROW = (_Narrow(ir.DataType.INT2, 25), _Narrow(ir.DataType.INT4, 21))


class ExportOptions(BaseModel):
    """How a network is written.

    `storage`: "fast", weights in INT8, or "packed", those of 4 bits or fewer in INT4 and INT2, for a small file.
    `profile`: "default", activations in UINT8 with a zero point, or "tensorrt", in INT8 with none. `reduce_range`:
    weights of 8 bits in 7, for processors without VNNI.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    storage: Storage = "fast"
    profile: Profile = "default"
    reduce_range: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written: the file and its bytes, its opset, its parity with the simulation and what runs in integers."""

    path: Path
    size: int
    opset: int
    parity: Parity
    fusion: Fusion


def export_onnx(
    quantized: QuantizedNetwork, path: str | Path, storage: Storage = "fast", *, force: bool = False, **choices: Any
) -> Exported:
    """Writes a quantized network as an ONNX file with a dynamic batch: images (N, C, H, W) -> logits (N, K).

    The file is run beside the simulated network on synthetic images before it is written.

    Args:
        storage: "fast" or "packed"; this and the other choices: see `ExportOptions`.
        force: whether a file that exists is replaced.

    Raises:
        ConfigError: an unknown choice.
        ExportError: the network holds an operation that ONNX has no form for, or the file computes something else; the
            message names the operation.
        OutputError: the file exists, or cannot be written.
    """
    try:
        options = ExportOptions(storage=storage, **choices)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"{problem['loc'][0]} {problem['input']!r} is not possible: {problem['msg']}") from error
    path = Path(path)
    if path.exists() and not force:
        raise OutputError(f"{path} exists: give another name, or --force to replace it")
    graph = export_graph(quantized, options)
    model = onnx_model(graph, quantized, options)
    parity = verify(model, graph, synthetic_images(quantized.record.options, VERIFIED_IMAGES))
    content = model.SerializeToString()
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return Exported(path, len(content), model.opset_import[0].version, parity, fusion_in_onnxruntime(model))


def export_graph(quantized: QuantizedNetwork, options: ExportOptions) -> fx.GraphModule:
    """The integer graph that a file holds: images (N, C, H, W) -> logits (N, K) in torch."""
    simulated = quantized.graph_module
    if options.reduce_range:
        simulated = with_reduced_weights(simulated)
    if options.profile == "tensorrt":
        return integer_graph(with_symmetric_activations(simulated), "int8")
    return integer_graph(simulated, "uint8")


def onnx_model(graph: fx.GraphModule, quantized: QuantizedNetwork, options: ExportOptions) -> onnx.ModelProto:
    """An integer graph as an ONNX model that the checker has passed.

    Raises:
        ExportError: an operation has no form in ONNX.
    """
    model = _translated(graph, quantized.record.options.input_shape).model
    for node in model.graph.all_nodes():
        # Where the exporter met it: paths of this machine.
        node.metadata_props.clear()
    opset = _pack(model) if options.storage == "packed" else _OPSET
    model.opset_imports[""] = opset
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.metadata_props.update(_metadata(quantized, options))
    model.producer_name, model.producer_version = "causal-dfq", __version__
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def float_model(quantized: QuantizedNetwork) -> onnx.ModelProto:
    """The network before quantization as an ONNX model, to compare with.

    Raises:
        ExportError: an operation has no form in ONNX.
    """
    return ir.to_proto(_translated(quantized.reference, quantized.record.options.input_shape).model)


def _translated(graph: fx.GraphModule, input_shape: tuple[int, int, int]) -> torch.onnx.ONNXProgram:
    # Two images: a batch of one would be taken for a constant.
    images = torch.zeros(2, *input_shape)
    try:
        return _exporter(graph, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:
        node = _unwritable_operation(graph, images)
        if node is not None:
            raise ExportError(
                f"{node.target} at {module_path(node)} has no form in ONNX: replace it in the network, quantize again"
            ) from error
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ExportError(f"the network cannot be written as ONNX: {reason}") from error


def _exporter(module: fx.GraphModule, inputs: tuple[Tensor, ...], **choices: Any) -> torch.onnx.ONNXProgram:
    with _silent():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            custom_translation_table=IN_ONNX,
            input_names=[INPUT],
            output_names=[OUTPUT],
            **choices,
        )
    assert program is not None
    return program


def _unwritable_operation(graph: fx.GraphModule, images: Tensor) -> fx.Node | None:
    """The first operation that the exporter cannot write where it stands alone."""
    values = _ValuesOfNodes(graph)
    with torch.no_grad():
        values.run(images)
    for node in graph.graph.nodes:
        if node.op == "call_function" and isinstance(values.found[node], Tensor):
            try:
                _exporter(*_alone(node, values.found))
            except Exception:
                return node  # type: ignore[no-any-return]
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


def _alone(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """An operation as a network of its own, and what it reads."""
    graph = fx.Graph()
    tensors = [source for source in node.all_input_nodes if isinstance(values[source], Tensor)]
    inputs = {source: graph.placeholder(source.name) for source in tensors}
    copied = graph.node_copy(node, lambda source: inputs.get(source, values[source]))
    graph.output(copied)
    return fx.GraphModule(nn.Module(), graph), tuple(values[source] for source in tensors)


def _pack(model: ir.Model) -> int:
    """Codes that fit into 4 or 2 bits are stored in these, and cast to INT8 before they are read; returns the opset.

    A runtime casts constants once, when it loads the file, and from then on computes as with the others.
    """
    opset = _OPSET
    codes = {
        node.inputs[0]
        for node in model.graph
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].is_initializer()
    }
    for stored in sorted(codes, key=lambda value: str(value.name)):
        assert stored.const_value is not None
        values = stored.const_value.numpy()
        narrow = next((each for each in _NARROW if _holds(each.kind, values)), None)
        if narrow is None or stored.dtype != ir.DataType.INT8:
            continue
        opset = max(opset, narrow.opset)
        name = f"{stored.name}.packed"
        tensor = ir.Tensor(values.astype(narrow.kind.numpy()), dtype=narrow.kind, name=name)
        packed = ir.val(name, const_value=tensor)
        cast = ir.node("Cast", [packed], {"to": ir.DataType.INT8}, name=f"{stored.name}.cast")
        model.graph.register_initializer(packed)
        model.graph.insert_before(model.graph[0], cast)
        stored.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[str(stored.name)]
    return opset


def _holds(kind: ir.DataType, values: npt.NDArray[np.integer]) -> bool:
    lowest, highest = integer_range(kind.bitwidth, is_signed=True)
    return bool(values.min() >= lowest and values.max() <= highest)


def _metadata(quantized: QuantizedNetwork, options: ExportOptions) -> dict[str, str]:
    chosen = quantized.record.options
    return {
        "bits": chosen.bits,
        "protocol": chosen.protocol,
        "causal_dfq": __version__,
        "mean": json.dumps(chosen.mean),
        "std": json.dumps(chosen.std),
        **{name: str(value) for name, value in options.model_dump().items()},
    }


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
