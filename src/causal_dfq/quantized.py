"""The finished network: what `quantize` returns, `save` writes and `load` reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from causal_dfq.config import Options
from causal_dfq.errors import OutputError
from causal_dfq.files import detached_state, output_error, write_tensors, write_text
from causal_dfq.network.operations import attribute
from causal_dfq.network.serialize import graph_from_data, graph_to_data
from causal_dfq.quantizer.accumulator import ACCUMULATORS, CODE_OPERATIONS
from causal_dfq.quantizer.modules import (
    Accumulator,
    ActivationQuantizer,
    FrozenActivationQuantizer,
    IntegerWeight,
    WeightQuantizer,
)
from causal_dfq.quantizer.runtime_arithmetic import CodeOperation

MODEL_FILE, FLOAT_FILE, CONFIG_FILE = "model.safetensors", "float.safetensors", "config.json"
FORMAT = "causal-dfq 1"


class QuantizedTensor(BaseModel):
    """One quantizer, as the report and the configuration name it."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: str
    bits: int
    scale: list[float]
    zero_point: list[int]


class RunRecord(BaseModel):
    """Where a quantized network comes from: everything needed to run it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: Options
    reference: str | None = None
    weights: str | None = None
    command: str | None = None
    network_digest: str
    device: str
    threads: int
    versions: dict[str, str]
    budget: dict[str, int]
    recipe: dict[str, int | float]
    steps: int
    seconds: float
    # Empty where no generator was trained.
    causal_model: str
    # Whether the float network has BatchNorm, to whose statistics images were held.
    has_statistics: bool = True
    last_metrics: dict[str, float]
    # By layer, at its bits; see training/sensitivity.py.
    sensitivities: dict[str, float] = Field(default_factory=dict)


class QuantizedNetwork(nn.Module):
    """A plain module on normalized images (N, C, H, W), giving logits (N, K) in float32.

    Weights are held as integers; activations are rounded to the grids that an integer runtime uses.
    `reference` is the float network on the same graph; `record` tells where it all comes from. On a GPU, convolutions
    that compute in TF32 err by more than an accumulator's unit: call it within `precision.float32_convolutions()`.
    """

    def __init__(self, graph: fx.GraphModule, reference: fx.GraphModule, record: RunRecord) -> None:
        super().__init__()
        self.graph_module = graph
        # Kept out of the module's state: a list hides it from nn.Module.
        self._reference = [reference]
        self.record = record
        self.eval()

    @property
    def reference(self) -> fx.GraphModule:
        """The network before quantization, BatchNorm folded: images (N, C, H, W) -> logits (N, K)."""
        return self._reference[0]

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (N, C, H, W) -> logits (N, K)."""
        logits: Tensor = self.graph_module(images.contiguous(memory_format=torch.channels_last))
        return logits

    def quantized_tensors(self) -> list[QuantizedTensor]:
        """Every quantizer with its bits, scales and zero points, in the order of the graph."""
        found: dict[str, QuantizedTensor] = {}
        for node in self.graph_module.graph.nodes:
            if node.op != "call_module" or str(node.target) in found:
                continue
            module = attribute(self.graph_module, str(node.target))
            if isinstance(module, Accumulator | CodeOperation):
                continue
            kind = "weight" if isinstance(module, IntegerWeight) else "activation"
            found[str(node.target)] = QuantizedTensor(
                name=str(node.target),
                kind=kind,
                bits=module.bits,
                scale=module.scale.flatten().tolist(),
                zero_point=module.zero_point.flatten().int().tolist(),
            )
        return list(found.values())

    def save(self, folder: str | Path) -> None:
        """Writes model.safetensors, float.safetensors and config.json; each is whole or not there.

        Raises:
            OutputError: the folder cannot be written, or the disk is full.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error) from error
        config = {
            "format": FORMAT,
            **self.record.model_dump(mode="json"),
            "quantized_tensors": [tensor.model_dump() for tensor in self.quantized_tensors()],
            "graph": graph_to_data(self.graph_module.graph),
            "float_graph": graph_to_data(self.reference.graph),
        }
        # The configuration makes a folder a finished one: it goes first and comes last.
        _remove(folder / CONFIG_FILE)
        write_tensors(folder / MODEL_FILE, detached_state(self.graph_module.state_dict()))
        write_tensors(folder / FLOAT_FILE, detached_state(self.reference.state_dict()))
        digests = {name: _sha256(folder / name) for name in (MODEL_FILE, FLOAT_FILE)}
        config["sha256"] = {**digests, CONFIG_FILE: _configuration_digest(config)}
        write_text(folder / CONFIG_FILE, json.dumps(config, indent=1) + "\n")


def load(folder: str | Path) -> QuantizedNetwork:
    """The quantized network that `save` wrote; runs no code from the folder.

    Raises:
        OutputError: the folder does not hold one, or a file of it is damaged; the message names the file.
    """
    folder = Path(folder)
    config = _read_config(folder)
    with _damage_told(folder / CONFIG_FILE):
        record = RunRecord.model_validate({name: config[name] for name in RunRecord.model_fields if name in config})
        bits = {str(tensor["name"]): int(tensor["bits"]) for tensor in config["quantized_tensors"]}
        graphs = graph_from_data(config["graph"]), graph_from_data(config["float_graph"])
        for graph in graphs:
            kinds = [node.op for node in graph.nodes]
            if kinds.count("placeholder") != 1 or kinds.count("output") != 1:
                raise ValueError("a graph of it has not one input and one output")
        # Folders of earlier versions have none.
        expected = dict(config.get("sha256", {}))
        found = _configuration_digest(config)
        if expected.get(CONFIG_FILE, found) != found:
            raise ValueError("its content is not what was saved")
    states = [_read_tensors(folder / name, expected.get(name)) for name in (MODEL_FILE, FLOAT_FILE)]
    rebuilt = []
    for name, graph, state, widths in zip((MODEL_FILE, FLOAT_FILE), graphs, states, (bits, {}), strict=True):
        with _damage_told(folder / name):
            rebuilt.append(_rebuild(graph, state, widths))
    return QuantizedNetwork(rebuilt[0], rebuilt[1], record)


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Makes one sentence of what goes wrong with the content of a file."""
    try:
        yield
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise OutputError(f"{path} is damaged: {where}: {problem['msg']}; quantize the network again") from error
    except OutputError as error:
        raise OutputError(f"{path} is damaged: {error}") from error
    except KeyError as error:
        raise OutputError(f"{path} is damaged: it holds no {error}; quantize the network again") from error
    except (SafetensorError, OSError, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise OutputError(f"{path} is damaged: {error}; quantize the network again") from error


def _read_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    with _damage_told(path):
        tensors = load_file(path)
        if sha256 is not None and _sha256(path) != sha256:
            raise ValueError("its content is not what was saved")
    return tensors


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _configuration_digest(config: dict[str, Any]) -> str:
    content = {name: value for name, value in config.items() if name != "sha256"}
    # As a reader of the file finds it: without tuples, and with names that are text.
    written = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()


def is_quantized_folder(folder: Path) -> bool:
    """Whether the folder's configuration is one that `save` wrote."""
    try:
        _read_config(folder)
    except OutputError:
        return False
    return True


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OutputError(f"{folder} holds no quantized network: {CONFIG_FILE} is missing") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder / CONFIG_FILE} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise OutputError(f"{folder / CONFIG_FILE} is not of the format {FORMAT!r}; quantize the network again")
    return config


@torch.no_grad()
def freeze(module: fx.GraphModule) -> fx.GraphModule:
    """The trained graph with integer weights and fixed grids; the trained one is left as it is."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    root = nn.Module()
    frozen: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        name = str(node.target)
        quantizer = attribute(module, name)
        if isinstance(quantizer, WeightQuantizer):
            weight = node.args[0]
            frozen[name] = quantizer.freeze(attribute(module, str(weight.target)))
            node.args = ()
            graph.erase_node(weight)
        elif isinstance(quantizer, ActivationQuantizer) and name not in frozen:
            frozen[name] = quantizer.freeze()
    for node in graph.nodes:
        if node.op == "get_attr":
            _attach(root, str(node.target), attribute(module, str(node.target)).detach().clone())
    for name, quantizer in frozen.items():
        _attach(root, name, quantizer)
    return fx.GraphModule(root, graph).cpu().eval()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(path, error) from error


def _attach(root: nn.Module, name: str, value: Tensor | nn.Module) -> None:
    """Sets root.a.b.c = value, making the modules on the way; tensors become buffers."""
    *path, last = name.split(".")
    owner = root
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if isinstance(value, nn.Module):
        owner.add_module(last, value)
    elif not hasattr(owner, last):
        owner.register_buffer(last, value)


def _rebuild(graph: fx.Graph, state: dict[str, Tensor], bits: dict[str, int]) -> fx.GraphModule:
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            tensor = state[str(node.target)]
            is_kernel = tensor.ndim == 4
            _attach(
                root,
                str(node.target),
                tensor.contiguous(memory_format=torch.channels_last) if is_kernel else tensor,
            )
    for name, width in bits.items():
        scale, zero_point = state[f"{name}.scale"], state[f"{name}.zero_point"]
        codes = state.get(f"{name}.codes")
        if codes is not None:
            memory_format = torch.channels_last if codes.ndim == 4 else torch.contiguous_format
            _attach(
                root,
                name,
                IntegerWeight(codes.contiguous(memory_format=memory_format), scale, zero_point, width),
            )
        else:
            _attach(root, name, FrozenActivationQuantizer(scale, zero_point, width))
    for key in state:
        name, _, buffer = key.rpartition(".")
        if name.startswith(f"{ACCUMULATORS}.") and buffer == "unit":
            _attach(root, name, Accumulator(state[key], state[f"{name}.scale"]))
        simulated = CODE_OPERATIONS.get(name.rpartition(".")[0])
        if simulated is not None and buffer == "scales":
            _attach(root, name, simulated.kind(state[key], state[f"{name}.zero_points"]))
    module = fx.GraphModule(root, graph)
    return module.eval()
