"""The quantized network as an ONNX file in QDQ form: what integer runtimes read.

Weights and biases are stored as integers; between a QuantizeLinear and its DequantizeLinear a tensor is in 8 bits.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import fx

from causal_dfq.config import FLOAT_BITS
from causal_dfq.errors import CausalDFQError, ConfigError, ExportError
from causal_dfq.export.fusion_report import Fusion, fusion_in_onnxruntime
from causal_dfq.export.integer_graph import integer_graph
from causal_dfq.export.packing import pack_weights, packed_types
from causal_dfq.export.translation import translated
from causal_dfq.export.variants import with_reduced_weights, with_symmetric_activations
from causal_dfq.export.verify import Parity, synthetic_images, verify
from causal_dfq.files import check_target, write_atomically
from causal_dfq.network.error_text import first_line
from causal_dfq.network.operations import (
    TRANSPOSED_CONVOLUTION_NAMES,
    clipping_bounds,
    hands_values_on,
    module_path,
    operation_name,
    unrounded_layers,
)
from causal_dfq.quantized import QuantizedNetwork
from causal_dfq.quantizer.placement import ACTIVATION_QUANTIZERS
from causal_dfq.version import __version__

Storage = Literal["fast", "packed"]
Profile = Literal["default", "tensorrt"]
VERIFIED_IMAGES = 64
# No rounding explains less, on random weights and through many operations in float either.
LEAST_PARITY = 0.9
# The lowest that torch's exporter writes; of the operators here some are in it alone, as a ReduceMean over given axes.
_LOWEST_OPSET = 18
# Operations whose weights stay in float, and which ONNX Runtime rounds where it finds them between integers.
_INSTEAD = dict.fromkeys(TRANSPOSED_CONVOLUTION_NAMES, "an upsampling and a convolution") | {"addmm": "nn.Linear"}


class ExportOptions(BaseModel):
    """How a network is written.

    `storage`: "fast", weights in INT8, or "packed", those of 4 bits or fewer in INT4 or INT2, for a small file.
    `profile`: "default", activations in UINT8 with a zero point, or "tensorrt", in INT8 with none and biases in float.
    `reduce_range`: weights of 8 bits in 7, for processors without VNNI.
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
        ConfigError: an unknown choice, weights in float, or a profile that the network's protocol rules out.
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
    check_target(path, force)
    graph = export_graph(quantized, options)
    model = onnx_model(graph, quantized, options)
    is_as_simulated = options.profile == "default" and not options.reduce_range
    # The simulations of other protocols have biases and sums in float.
    has_runtime_arithmetic = is_as_simulated and quantized.record.options.protocol == "deploy"
    try:
        simulated = copy.deepcopy(quantized.graph_module).cpu()
        images = synthetic_images(quantized.record.options, VERIFIED_IMAGES)
        parity = verify(model, graph, simulated, images, simulated if has_runtime_arithmetic else graph)
        fusion = fusion_in_onnxruntime(model)
    except CausalDFQError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no family of their own.
        raise ExportError(f"ONNX Runtime cannot run the file, which is not written: {first_line(error)}") from error
    if is_as_simulated and max(parity.cosine, parity.agreement) < LEAST_PARITY:
        raise ExportError(
            "the file does not compute what the simulated network does: its logits have a cosine of "
            f"{parity.cosine:.3f} to those, and {100 * parity.agreement:.0f} % of the classes are the same, although "
            "each layer by itself agrees; nothing is written; quantize with --protocol deploy, or with more bits"
        )
    content = model.SerializeToString()
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return Exported(path, len(content), model.opset_import[0].version, parity, fusion)


def export_graph(quantized: QuantizedNetwork, options: ExportOptions) -> fx.GraphModule:
    """The integer graph that a file holds: images (N, C, H, W) -> logits (N, K) in torch.

    Raises:
        ConfigError: weights in float, or a profile that the network's protocol rules out.
        ExportError: a layer has no integer form.
    """
    if quantized.record.options.widths.weight == FLOAT_BITS:
        raise ConfigError(
            f"bits {quantized.record.options.bits}: the weights are in float, and ONNX Runtime would round them to 8 "
            "bits by itself; quantize them too, with w8 for example"
        )
    simulated = quantized.graph_module
    for node in unrounded_layers(simulated.graph):
        if operation_name(node) in _INSTEAD and _becomes_codes(node):
            raise ExportError(
                f"{operation_name(node)} at {module_path(node)} has its weights in float, and ONNX Runtime would round "
                f"them by itself; put {_INSTEAD[operation_name(node)]} in its place, then quantize again"
            )
    if options.reduce_range:
        simulated = with_reduced_weights(simulated)
    if options.profile == "default":
        return integer_graph(simulated, "uint8")
    if quantized.record.options.protocol == "gdfq":
        raise ConfigError(
            "the profile tensorrt takes weights without zero points, and the protocol gdfq gives them some: "
            "quantize with --protocol deploy"
        )
    return integer_graph(with_symmetric_activations(simulated), "int8")


def _becomes_codes(node: fx.Node) -> bool:
    """Whether a quantizer reads a tensor, as it is, clipped or moved."""
    for user in node.users:
        if user.op == "call_module" and str(user.target).startswith(f"{ACTIVATION_QUANTIZERS}."):
            return True
        if (clipping_bounds(user) is not None or hands_values_on(user)) and _becomes_codes(user):
            return True
    return False


def onnx_model(graph: fx.GraphModule, quantized: QuantizedNetwork, options: ExportOptions) -> onnx.ModelProto:
    """An integer graph as an ONNX model that the checker has passed.

    Raises:
        ExportError: an operation has no form in ONNX, or the checker refuses the model.
    """
    weight_bits = {tensor.bits for tensor in quantized.quantized_tensors() if tensor.kind == "weight"}
    types = packed_types(weight_bits) if options.storage == "packed" else []
    opset = max([_LOWEST_OPSET, *(packed.opset for packed in types)])
    model = translated(graph, quantized.record.options.input_shape, opset)
    pack_weights(model, types)
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.metadata_props.update(_metadata(quantized, options))
    model.producer_name, model.producer_version = "causal-dfq", __version__
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX's checker refuses the file, which is not written: {first_line(error)}") from error
    return proto


def float_model(quantized: QuantizedNetwork) -> onnx.ModelProto:
    """The network before quantization as an ONNX model, to compare with.

    Raises:
        ExportError: an operation has no form in ONNX.
    """
    return ir.to_proto(translated(quantized.reference, quantized.record.options.input_shape, _LOWEST_OPSET))


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
