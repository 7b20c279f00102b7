"""Whether an exported file computes what the simulated network does, layer by layer and as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, fx

from causal_dfq.config import Options
from causal_dfq.errors import ExportError
from causal_dfq.export.integer_graph import Requantize
from causal_dfq.network.operations import attribute, is_value_preserving, module_path, operation_name
from causal_dfq.synthesis.pixel_space import PixelSpace
from causal_dfq.synthesis.scenes import draw_scenes

# Half a step of rounding, on either side of a tie.
LARGEST_STEPS = 1
# Ties are rare: so many codes, and this share of a tensor's beside them, may lie on one.
_TIES, LARGEST_SHARE = 4, 0.05
# Relative, of sums in another order.
_ARITHMETIC = 1e-3
_BATCH = 32
_IMAGES_BY_LAYER = 8


@dataclass(frozen=True)
class LayerParity:
    """How a tensor of the file differs from what the simulation makes of the same inputs of its layer.

    `steps`: the largest difference, in steps of the tensor's grid; `share` of its `codes` differ. `has_own_unit`: a
    runtime rounds it in another unit than that of its grid.
    """

    name: str
    steps: float
    share: float
    codes: int
    has_own_unit: bool = False

    @property
    def is_rounding(self) -> bool:
        """Whether rounding alone explains the difference: one step, of codes that lie next to a tie."""
        are_ties = self.share * self.codes <= _TIES + LARGEST_SHARE * self.codes
        return self.steps <= LARGEST_STEPS + _ARITHMETIC and (are_ties or self.has_own_unit)


@dataclass(frozen=True)
class Parity:
    """A file beside the simulated network on synthetic images.

    `agreement`: share of the images with the same class. `cosine`: between the logits of all images; `worst_cosine`:
    the smallest of a single image. `layers`: each on the file's own inputs, in the order of the network.
    """

    images: int
    agreement: float
    cosine: float
    worst_cosine: float
    layers: tuple[LayerParity, ...]


def synthetic_images(options: Options, count: int, seed: int = 0) -> Tensor:
    """Procedural scenes (count, C, H, W), within the pixels that a picture can have where these are known."""
    random = torch.Generator().manual_seed(seed)
    scenes = draw_scenes(count, options.input_shape, random)
    images: Tensor = PixelSpace(options.pixel_bounds, options.input_shape[0])(scenes)
    return images


def verify(
    model: onnx.ModelProto,
    graph: fx.GraphModule,
    simulated: fx.GraphModule,
    images: Tensor,
    compared: fx.GraphModule,
) -> Parity:
    """The parity of an ONNX model with the simulated network, on images (N, C, H, W).

    Args:
        graph: the integer graph that the model was made of.
        simulated: the network as it was quantized.
        compared: the network whose layers must give what the model's give, on some of the images; see
            `compare_layers`.

    Raises:
        ExportError: a layer differs by more than rounding; the message names the first one.
    """
    layers = compare_layers(model, graph, compared, images[:_IMAGES_BY_LAYER])
    session = onnxruntime_session(model.SerializeToString())
    name = session.get_inputs()[0].name
    with torch.no_grad():
        expected = torch.cat([simulated(chunk) for chunk in images.split(_BATCH)])
    found = torch.cat([torch.from_numpy(session.run(None, {name: c.numpy()})[0]) for c in images.split(_BATCH)])
    by_image = torch.cosine_similarity(expected.double(), found.double())
    # Logits that are all zero have no direction.
    by_image[(expected == found).all(1)] = 1.0
    return Parity(
        images=len(images),
        agreement=float((expected.argmax(1) == found.argmax(1)).float().mean()),
        cosine=float(torch.cosine_similarity(expected.double().flatten(), found.double().flatten(), 0)),
        worst_cosine=float(by_image.min()),
        layers=layers,
    )


def compare_layers(
    model: onnx.ModelProto, graph: fx.GraphModule, compared: fx.GraphModule, images: Tensor
) -> tuple[LayerParity, ...]:
    """Every requantized tensor of the file beside what a network makes of the file's own inputs of its layer.

    So a difference is one layer's, not that of the layers before it.

    Args:
        graph: the integer graph that the model was made of, whose calls give the file's tensors their names.
        compared: the network that computes the layers: the simulated one, or the graph itself where the file is to
            compute something else.

    Raises:
        ExportError: one differs by more than rounding, or the logits do; the message names the first one.
    """
    # The exporter numbers the calls of one operator in their order.
    calls = [node.name for node in graph.graph.nodes if _is_requantization(graph, node)]
    names = {call: f"requantize_{number}" if number else "requantize" for number, call in enumerate(calls)}
    written = {output for node in model.graph.node for output in node.output}
    exposed = {call: name for call, name in names.items() if name in written}
    if calls and not exposed:
        raise ExportError(
            "the file cannot be compared with the network layer by layer: this torch names them otherwise; "
            "export with a version of torch that the package was made for"
        )
    logits, *values = _values(model, [model.graph.output[0].name, *exposed.values()], images)
    comparison = _Comparison(compared, dict(zip(exposed, values, strict=True)))
    with torch.no_grad():
        expected = comparison.run(images)
    for layer in comparison.layers:
        if not layer.is_rounding:
            raise ExportError(
                f"the file does not compute what the simulated network does: first at {layer.name}, by "
                f"{layer.steps:.1f} steps of its grid, {100 * layer.share:.1f} % of its values; nothing is written"
            )
    difference = float((expected - torch.from_numpy(logits)).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= _ARITHMETIC:
        raise ExportError(
            f"the file does not compute what the simulated network does: its logits differ by {100 * difference:.1f} % "
            "although the layers before them agree; nothing is written"
        )
    return tuple(comparison.layers)


class _Comparison(fx.Interpreter):
    """Runs a network; behind each quantizer, by its node's name, it goes on with the file's values."""

    def __init__(self, graph: fx.GraphModule, exported: dict[str, npt.NDArray[np.float32]]) -> None:
        super().__init__(graph)
        self._exported = exported
        self.layers: list[LayerParity] = []

    def run_node(self, n: fx.Node) -> Any:
        """A node's value: the file's where there is one."""
        value = super().run_node(n)
        if n.name not in self._exported:
            return value
        theirs = torch.from_numpy(self._exported[n.name])
        steps = (value - theirs).abs() / attribute(self.module, str(n.target)).scale
        source = n.args[0]
        assert isinstance(source, fx.Node)
        share = float((steps > 0.5).double().mean())
        # ONNX Runtime counts shares in the largest whole number of steps in one, which the simulation does for the
        # usual dimensions alone.
        made = source
        while is_value_preserving(made):
            made = made.args[0]  # type: ignore[assignment]
        is_softmax = operation_name(made) == "softmax"
        self.layers.append(LayerParity(module_path(source), float(steps.max()), share, steps.numel(), is_softmax))
        return theirs


def onnxruntime_session(model: bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """The model in ONNX Runtime on the CPU; 0 threads: as many as it likes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _values(model: onnx.ModelProto, names: list[str], images: Tensor) -> list[npt.NDArray[np.float32]]:
    """What the file computes for tensors of these names."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    extended.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = onnxruntime_session(extended.SerializeToString())
    values: list[npt.NDArray[np.float32]] = session.run(names, {session.get_inputs()[0].name: images.numpy()})
    return values


def _is_requantization(graph: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(attribute(graph, str(node.target)), Requantize)
