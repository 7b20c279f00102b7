"""Trained networks whose norm is LayerNorm, with attention and without: what quantization costs them.

    python -m bench.layer_norm --data FOLDER [--efforts fast] [--seeds 0]

FOLDER: that of Debian's package dataset-fashion-mnist. A vision transformer and a ConvNeXt are trained on its training
images, once, to a folder under build/; what is quantized sees none of them. Accuracy is measured on the 2,000 images of
the demonstration; the exported file is compared with the simulation on synthetic images. Writes
bench/results/layer_norm.json, and a table of docs/method.md.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file
from timm.models import ConvNeXt, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from bench.changed_run import Case, quantize_changed
from bench.environment import ROOT, describe
from bench.networks import Subject
from bench.write_tables import by_case, origin_text, replace_between, seeds_text
from causal_dfq.data.labelled import Preprocessing, open_labelled
from causal_dfq.evaluation import evaluate_pair
from causal_dfq.export.onnx_file import export_onnx
from causal_dfq.files import write_text
from causal_dfq.zoo.train import augment
from causal_dfq.zoo.training_data import LabelledImages, read_fashion_mnist

RESULTS = ROOT / "bench" / "results" / "layer_norm.json"
PAGE = ROOT / "docs" / "method.md"
IMAGES = ROOT / "demo" / "fashion_mnist_2000.npz"
BITS = ("w8a8", "w4a8", "w4a4")
_INPUT_SHAPE, _MEAN, _STD = (1, 28, 28), (0.2860,), (0.3530,)


@dataclass(frozen=True)
class Training:
    """How the two are trained: AdamW, the rate rising in `warmup` of the steps and falling to 0 by a cosine."""

    epochs: int = 4
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    warmup: float = 0.05


def build(name: str) -> nn.Module:
    """An untrained network: images (N, 1, 28, 28) -> logits (N, 10)."""
    if name == "vit":
        return VisionTransformer(
            img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=2
        )
    return ConvNeXt(in_chans=1, num_classes=10, depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), patch_size=1)


NAMES = ("vit", "convnext")


def trained(name: str, data: Path, folder: Path) -> nn.Module:
    """The network with the weights of its last training step, which are kept in the folder."""
    torch.manual_seed(0)
    network = build(name)
    weights = folder / f"{name}.safetensors"
    if not weights.exists():
        _train(network, read_fashion_mnist(data, "train"), Training())
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, weights)
    network.load_state_dict(load_file(weights))
    return network.eval()


def _train(network: nn.Module, data: LabelledImages, training: Training) -> None:
    random = torch.Generator().manual_seed(0)
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, training.learning_rate)
    steps = training.epochs * (len(data.labels) // training.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps, training.warmup))
    normalized = (data.images.float() / 255 - _MEAN[0]) / _STD[0]
    network.train()
    for step in range(steps):
        chosen = torch.randint(0, len(data.labels), (training.batch,), generator=random)
        images = augment(normalized[chosen], _INPUT_SHAPE[1], 2, random)
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = network(images)
        loss = functional.cross_entropy(logits.float(), data.labels[chosen], label_smoothing=training.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)


def _rate(position: float, warmup: float) -> float:
    if position < warmup:
        return position / warmup
    return 0.5 * (1 + math.cos(math.pi * (position - warmup) / (1 - warmup)))


def measure(name: str, network: nn.Module, bits: str, effort: str, seed: int) -> dict[str, Any]:
    """Drop and agreement in points and % on the demonstration's images, and the file's beside the simulation."""
    subject = Subject(network, _INPUT_SHAPE, _MEAN, _STD, ())
    quantized = quantize_changed(subject, Case(bits, "deploy", effort, seed))  # type: ignore[arg-type]
    images = open_labelled(IMAGES, Preprocessing(_INPUT_SHAPE, _MEAN, _STD))
    found = evaluate_pair(quantized, quantized.reference, images, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        exported = export_onnx(quantized, Path(folder) / "network.onnx")
    return {
        "network": name,
        "bits": bits,
        "effort": effort,
        "seed": seed,
        "images": found.images,
        "float_top1": found.float_top1,
        "drop": found.drop,
        "agreement": found.agreement,
        "file_agreement": 100 * exported.parity.agreement,
        "file_cosine": exported.parity.cosine,
        "fused": exported.fusion.fused,
        "products": exported.fusion.total,
        "seconds": quantized.record.seconds,
    }


def table(results: dict[str, Any]) -> str:
    """A line a network, width and effort."""
    lines = [
        "What quantization costs two networks with LayerNorm, trained on Fashion-MNIST for this measurement:",
        "",
        "| network | bits | effort | FP32 | drop | agreement | class of the file | integer products | seeds |",
        "|---|---|---|---:|---:|---:|---:|---|---|",
    ]
    for (network, bits, effort), runs in by_case(results).items():
        mean = {
            name: sum(run[name] for run in runs) / len(runs)
            for name in ("float_top1", "drop", "agreement", "file_agreement")
        }
        lines.append(
            f"| {network} | {bits} deploy | {effort} | {mean['float_top1']:.2f} | {mean['drop']:.2f} "
            f"| {mean['agreement']:.1f} % | {mean['file_agreement']:.1f} % "
            f"| {runs[0]['fused']} of {runs[0]['products']} | {seeds_text(runs)} |"
        )
    lines += [
        "",
        f"Points of top-1 on the demonstration's {results['runs'][0]['images']:,} images; {origin_text(results)}",
    ]
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="Folder of Debian's package dataset-fashion-mnist.")],
    efforts: Annotated[str, typer.Option(help="Comma-separated.")] = "fast",
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0",
    weights: Annotated[Path, typer.Option(help="Where trained weights are kept.")] = ROOT / "build" / "layer_norm",
) -> None:
    """Trains what is missing and measures case by case."""
    networks = {name: trained(name, data, weights) for name in NAMES}
    runs: list[dict[str, Any]] = []
    for effort in efforts.split(","):
        for name, network in networks.items():
            for bits in BITS:
                for seed in seeds.split(","):
                    runs.append(measure(name, network, bits, effort, int(seed)))
                    print(runs[-1], flush=True)
                    write_text(RESULTS, json.dumps({**describe(), "runs": runs}, indent=1) + "\n")
    write_text(PAGE, replace_between(PAGE.read_text(), "layer-norm", table(json.loads(RESULTS.read_text()))))


if __name__ == "__main__":
    typer.run(main)
