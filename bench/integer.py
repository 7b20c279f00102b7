"""The integer file: the same answers as the simulation, its size, and its speed beside other tools' files.

    python -m bench.integer [--parts parity,sizes,speed]

Parity is measured on trained networks, quantized with effort fast: on 1,000 synthetic images, and on the development
images. Sizes and speed do not depend on what weights are: networks of torchvision with random ones. The other tools,
ONNX Runtime's static quantization and NNCF for OpenVINO (left out where it is not installed), are calibrated on the
same synthetic images. Everything timed is interleaved in one process. Writes bench/results/integer.json after every
part, and the tables of docs/export.md.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from torch import Tensor, nn
from torchvision.models import get_model

from bench.changed_run import Case, quantize_changed
from bench.coverage import FEW_STEPS
from bench.environment import ROOT, describe
from bench.networks import Subject, load_subject
from bench.timing import Timing
from bench.write_tables import replace_between
from causal_dfq.data.labelled import Preprocessing, open_labelled
from causal_dfq.evaluation import evaluate_pair
from causal_dfq.export.fusion_report import fusion_in_onnxruntime
from causal_dfq.export.latency import runtimes, timed_in_turn
from causal_dfq.export.onnx_file import ExportOptions, export_graph, float_model, onnx_model
from causal_dfq.export.verify import compare_layers, onnxruntime_session, synthetic_images
from causal_dfq.files import write_text
from causal_dfq.quantized import QuantizedNetwork
from causal_dfq.training.budget import LARGE_IMAGE_BUDGETS

RESULTS = ROOT / "bench" / "results" / "integer.json"
PAGE = ROOT / "docs" / "export.md"
IMAGES = 1000
PARITY = (
    ("resnet20-cifar10", "w8a8"),
    ("resnet20-cifar10", "w4a8"),
    ("resnet20-cifar10", "w4a4"),
    ("imagenet_mobilenet_v1_0.25_224", "w8a8"),
    ("imagenet_mobilenet_v1_0.25_224", "w4a8"),
)
# Of float32, at most.
SIZES = {"w8a8": 0.27, "w4a8": 0.16, "w2a4": 0.10}
# Times the speed of float32, at least.
SPEEDS = {"resnet18": 3.0, "mobilenet_v2": 1.6}
SPEED_BITS = ("w8a8", "w4a8", "w4a4")
_THREADS, _REPEATS, _CALIBRATION_IMAGES = 2, 60, 16


class OnnxFile(nn.Module):
    """A model in ONNX Runtime as a module: images (N, C, H, W) -> logits (N, K)."""

    def __init__(self, model: bytes) -> None:
        super().__init__()
        self._session = onnxruntime_session(model)
        self._input = self._session.get_inputs()[0].name

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return torch.from_numpy(self._session.run(None, {self._input: images.contiguous().numpy()})[0])


@dataclass(frozen=True)
class ParityRow:
    """A file beside the simulation: shares in % of images with the same class, and top-1 of both on real images."""

    network: str
    bits: str
    synthetic_agreement: float
    layers: int
    differing_layers: int
    most_steps: float
    images: int
    simulated_top1: float
    file_top1: float
    agreement: float


def measure_parity(name: str, bits: str, shared: Path) -> ParityRow:
    """Quantizes a trained network and compares its file with the simulation."""
    subject = load_subject(name, shared)
    quantized = quantize_changed(subject, Case(bits, "deploy", "fast", 0))
    with torch.no_grad():
        return _parity(name, bits, subject, quantized, shared)


def _parity(name: str, bits: str, subject: Subject, quantized: QuantizedNetwork, shared: Path) -> ParityRow:
    graph = export_graph(quantized, ExportOptions())
    model = onnx_model(graph, quantized, ExportOptions())
    file = OnnxFile(model.SerializeToString())
    images = synthetic_images(quantized.record.options, IMAGES)
    same = [file(chunk).argmax(1) == quantized(chunk).argmax(1) for chunk in images.split(_CALIBRATION_IMAGES)]
    layers = compare_layers(model, graph, quantized.graph_module, images[:8])
    preprocessing = Preprocessing(subject.input_shape, subject.mean, subject.std)
    found = [
        evaluate_pair(file, quantized, open_labelled(shared / "data" / part, preprocessing), torch.device("cpu"))
        for part in subject.sets
    ]
    total = sum(part.images for part in found)
    return ParityRow(
        name,
        bits,
        100 * float(torch.cat(same).float().mean()),
        len(layers),
        sum(layer.share > 0 for layer in layers),
        max(layer.steps for layer in layers),
        total,
        sum(part.images * part.float_top1 for part in found) / total,
        sum(part.images * part.top1 for part in found) / total,
        sum(part.images * part.agreement for part in found) / total,
    )


def measure_sizes() -> dict[str, Any]:
    """Bytes of ResNet-18's files: float32, and packed at each width."""
    found: dict[str, Any] = {}
    for bits in SIZES:
        quantized = _random_network("resnet18", bits)
        options = ExportOptions(storage="packed")
        found["float32"] = float_model(quantized).ByteSize()
        found[bits] = onnx_model(export_graph(quantized, options), quantized, options).ByteSize()
    return found


def measure_speed(name: str) -> dict[str, Any]:
    """Seconds of one image in each runtime: float32, ours at each width, and the runtime's own tool's."""
    quantized = {bits: _random_network(name, bits) for bits in SPEED_BITS}
    first = quantized[SPEED_BITS[0]]
    before = float_model(first)
    files = {"float32": before}
    files |= {
        bits: onnx_model(export_graph(network, ExportOptions()), network, ExportOptions())
        for bits, network in quantized.items()
    }
    images = synthetic_images(first.record.options, _CALIBRATION_IMAGES)
    runners: dict[str, Callable[[Tensor], Any]] = {}
    for runtime, make in runtimes().items():
        own = _of_onnxruntime if runtime.startswith("ONNX") else _of_nncf
        models = {label: model.SerializeToString() for label, model in files.items()}
        theirs = own(before, images)
        if theirs is not None:
            models[theirs[0]] = theirs[1]
        runners |= {f"{runtime}: {label}": make(model, _THREADS) for label, model in models.items()}
    seconds = timed_in_turn(runners, images[:1], _REPEATS)
    fused = {bits: fusion_in_onnxruntime(files[bits]) for bits in SPEED_BITS}
    return {
        "seconds": {label: asdict(Timing.of(times)) for label, times in seconds.items()},
        "fused": {bits: [fusion.fused, fusion.total] for bits, fusion in fused.items()},
    }


def _random_network(name: str, bits: str) -> QuantizedNetwork:
    torch.manual_seed(0)
    network = get_model(name, weights=None).eval()
    subject = Subject(network, (3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ())
    usual = LARGE_IMAGE_BUDGETS["fast"]
    LARGE_IMAGE_BUDGETS["fast"] = replace(FEW_STEPS, warmup_steps=0, finish_rounds=0, rounding_images=0)
    try:
        return quantize_changed(subject, Case(bits, "deploy", "fast", 0))
    finally:
        LARGE_IMAGE_BUDGETS["fast"] = usual


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: Tensor) -> None:
        self._left: Iterator[Tensor] = iter(images.split(1))
        self._name = name

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        image = next(self._left, None)
        return None if image is None else {self._name: image.numpy()}


def _of_onnxruntime(model: onnx.ModelProto, images: Tensor) -> tuple[str, bytes]:
    """ONNX Runtime's static quantization: UINT8 activations, INT8 weights for each channel, QDQ."""
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, result = (Path(folder) / f"{part}.onnx" for part in ("source", "prepared", "result"))
        source.write_bytes(model.SerializeToString())
        quant_pre_process(source, prepared)
        quantize_static(
            prepared,
            result,
            _Images(model.graph.input[0].name, images),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return "its quantize_static, w8a8", result.read_bytes()


def _of_nncf(model: onnx.ModelProto, images: Tensor) -> tuple[str, bytes] | None:
    """NNCF's post-training quantization with its defaults, where it is installed."""
    if importlib.util.find_spec("nncf") is None:
        return None
    import nncf  # type: ignore[import-not-found]

    name = model.graph.input[0].name
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(images.split(1)), lambda image: {name: image.numpy()}),
        subset_size=len(images),
    )
    return f"NNCF {nncf.__version__}, w8a8", quantized.SerializeToString()


def _measured(results: dict[str, Any], part: str) -> Any:
    return results[part]["measured"] if part in results else None


def _of_each_processor(entries: list[dict[str, Any]], entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of other processors than an entry's, and the entry."""
    processor = entry["origin"]["machine"]["processor"]
    return [other for other in entries if other["origin"]["machine"]["processor"] != processor] + [entry]


def page_section(results: dict[str, Any]) -> str:
    """The tables of docs/export.md."""
    lines = [
        "| trained network | bits | same class, synthetic | same class, real | top-1, simulation | top-1, file |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in _measured(results, "parity") or []:
        lines.append(
            f"| `{row['network']}` | {row['bits']} | {row['synthetic_agreement']:.1f} % | {row['agreement']:.2f} % "
            f"| {row['simulated_top1']:.2f} | {row['file_top1']:.2f} |"
        )
    sizes = _measured(results, "sizes")
    if sizes:
        lines += ["", "| ResNet-18, packed | MB | of float32 | at most |", "|---|---:|---:|---:|"]
        for bits, most in SIZES.items():
            lines.append(f"| {bits} | {sizes[bits] / 1e6:.2f} | {sizes[bits] / sizes['float32']:.3f} | {most:.2f} |")
    by_network = [
        (name, speed["origin"]["machine"]["processor"], speed["measured"][name])
        for name in SPEEDS
        for speed in results.get("speed", [])
    ]
    for name, processor, measured in by_network:
        asked = f"times float32; w8a8 asked in ONNX Runtime: {SPEEDS[name]}"
        lines += ["", f"| {name}, one image, {_THREADS} threads, {processor} | ms | {asked} |", "|---|---:|---:|"]
        seconds = measured["seconds"]
        for label, timing in seconds.items():
            runtime = label.partition(":")[0]
            ratio = seconds[f"{runtime}: float32"]["median"] / timing["median"]
            lines.append(f"| {label} | {1000 * timing['median']:.2f} | {ratio:.2f} |")
        fused = ", ".join(f"{bits} {done} of {total}" for bits, (done, total) in measured["fused"].items())
        lines += ["", f"Convolutions and matrix products in integers in ONNX Runtime: {fused}."]
    origins = [(part, results[part]["origin"]) for part in ("parity", "sizes") if part in results]
    origins += [("speed", speed["origin"]) for speed in results.get("speed", [])]
    commits = ", ".join(
        f"{part} {origin['commit'][:10]} ({origin['machine']['processor']})" for part, origin in origins
    )
    first = origins[0][1]
    lines += [
        "",
        f"{first['machine']['cores']} cores, torch {first['versions']['torch']}; commits: {commits}; "
        "`python -m bench.integer`. Same class: of "
        f"{IMAGES:,} procedural scenes, and of the development images. Medians of {_REPEATS} runs, in turn; "
        "the weights of the timed networks are random.",
    ]
    return "\n".join(lines)


def main(
    shared: Annotated[Path, typer.Option(help="Folder with data/ and checkpoints/.")] = ROOT.parent / "shared",
    parts: Annotated[str, typer.Option(help="Of parity, sizes, speed.")] = "parity,sizes,speed",
) -> None:
    """Measures the parts and writes the tables."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in parts.split(","):
        measure: Callable[[], Any] = {
            "parity": lambda: [asdict(measure_parity(name, bits, shared)) for name, bits in PARITY],
            "sizes": measure_sizes,
            "speed": lambda: {name: measure_speed(name) for name in SPEEDS},
        }[part]
        entry = {"origin": describe(), "measured": measure()}
        results[part] = _of_each_processor(results.get(part, []), entry) if part == "speed" else entry
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
        write_text(PAGE, replace_between(PAGE.read_text(), "integer", page_section(results)))
    print(page_section(results))


if __name__ == "__main__":
    typer.run(main)
