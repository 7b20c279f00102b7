"""How long a network and its quantized form take in the runtimes that this machine has, side by side."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx
import onnxruntime
from torch import Tensor

from causal_dfq.export.onnx_file import ExportOptions, export_graph, float_model, onnx_model
from causal_dfq.export.verify import onnxruntime_session, synthetic_images
from causal_dfq.network.error_text import first_line
from causal_dfq.quantized import QuantizedNetwork

FLOAT, QUANTIZED = "float32", "quantized"
_WARM_UP, _TURNS, _PAUSE = 4, 6, 0.05
Key = TypeVar("Key")


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of a batch in a runtime; `network` is `FLOAT` or `QUANTIZED`."""

    runtime: str
    network: str
    batch: int
    milliseconds: float


@dataclass(frozen=True)
class Measured:
    """The latencies, and what a runtime said that does not run one of the networks."""

    latencies: list[Latency]
    refused: dict[str, str]


@dataclass(frozen=True)
class FileSizes:
    """Bytes of the ONNX files: of the float network, and of the quantized one in either storage."""

    float32: int
    fast: int
    packed: int


def file_sizes(quantized: QuantizedNetwork) -> FileSizes:
    """What the files would take on a disk; none is written.

    Raises:
        ConfigError: weights in float.
        ExportError: an operation has no form in ONNX.
    """
    return FileSizes(
        float_model(quantized).ByteSize(),
        _integer_model(quantized, ExportOptions()).ByteSize(),
        _integer_model(quantized, ExportOptions(storage="packed")).ByteSize(),
    )


def measure_latency(
    quantized: QuantizedNetwork, threads: int, rounds: int, batches: tuple[int, ...] = (1, 8)
) -> Measured:
    """The latency of both networks in every runtime, in turn, so that a slow moment meets all.

    Raises:
        ConfigError: weights in float.
        ExportError: an operation has no form in ONNX.
    """
    models = {FLOAT: float_model(quantized), QUANTIZED: _integer_model(quantized, ExportOptions())}
    runners: dict[tuple[str, str], Callable[[Tensor], Any]] = {}
    refused: dict[str, str] = {}
    for runtime, make in runtimes().items():
        try:
            of_runtime = {(runtime, name): make(model.SerializeToString(), threads) for name, model in models.items()}
        except Exception as error:  # Each runtime has errors of its own kind.
            refused[runtime] = first_line(error)
        else:
            runners |= of_runtime
    found = []
    for batch in batches:
        images = synthetic_images(quantized.record.options, batch)
        seconds = timed_in_turn(runners, images, rounds)
        found += [Latency(*key, batch, 1000 * statistics.median(values)) for key, values in seconds.items()]
    return Measured(found, refused)


def timed_in_turn(
    runners: Mapping[Key, Callable[[Tensor], Any]], images: Tensor, rounds: int
) -> dict[Key, list[float]]:
    """Seconds of each runner on a batch (N, C, H, W), `rounds` values each, some at a stretch, turn by turn.

    Threads of a runtime that has just run spin on for a while and take the cores from the next one: the first runs
    of a stretch are not counted.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in runners}
    stretch = -(-rounds // _TURNS)
    for turn in range(0, rounds, stretch):
        for key, runner in runners.items():
            time.sleep(_PAUSE)
            for number in range(_WARM_UP + min(stretch, rounds - turn)):
                started = time.perf_counter()
                runner(images)
                if number >= _WARM_UP:
                    seconds[key].append(time.perf_counter() - started)
    return seconds


def runtimes() -> dict[str, Callable[[bytes, int], Callable[[Tensor], Any]]]:
    """Name and version of each runtime that is installed, and what makes a runner of a model for so many threads."""
    found: dict[str, Callable[[bytes, int], Callable[[Tensor], Any]]] = {
        f"ONNX Runtime {onnxruntime.__version__}": _in_onnxruntime
    }
    if importlib.util.find_spec("openvino") is not None:
        import openvino

        found[f"OpenVINO {openvino.__version__.partition('-')[0]}"] = _in_openvino
    return found


def _in_onnxruntime(model: bytes, threads: int) -> Callable[[Tensor], Any]:
    session = onnxruntime_session(model, threads)
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})


def _in_openvino(model: bytes, threads: int) -> Callable[[Tensor], Any]:
    import openvino

    core = openvino.Core()
    # Without the hint it computes in bfloat16 where it can: other numbers than those of the file.
    choices = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(model), "CPU", choices)
    return lambda images: compiled(images.numpy())


def _integer_model(quantized: QuantizedNetwork, options: ExportOptions) -> onnx.ModelProto:
    return onnx_model(export_graph(quantized, options), quantized, options)
