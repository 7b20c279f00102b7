"""Which networks the package takes: capture, quantization, export and parity, over torchvision and timm.

    python -m bench.coverage [--only resnet] [--again]

Every classifier of torchvision and networks of timm's convolutional and hybrid families, with random weights and the
BatchNorm statistics of procedural scenes, at w8a8 with effort fast cut to a few steps. Writes
bench/results/coverage.json after every network and docs/coverage.md at the end; networks that the file holds are not
run again. Each network is a process of its own, so that one that fails or takes too long stops no other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from bench.coverage_list import SUBJECTS, Subject
from bench.environment import ROOT, describe, peak_memory_gb
from causal_dfq.config import make_options
from causal_dfq.errors import CausalDFQError
from causal_dfq.export.onnx_file import export_onnx
from causal_dfq.export.verify import synthetic_images
from causal_dfq.files import write_text
from causal_dfq.pipeline import finish, prepare, start_run, train
from causal_dfq.quantized import QuantizedNetwork
from causal_dfq.synthesis.scenes import draw_scenes
from causal_dfq.training.budget import BUDGETS, CAUSAL_RECIPE, LARGE_IMAGE_BUDGETS, Budget

RESULTS = ROOT / "bench" / "results" / "coverage.json"
PAGE = ROOT / "docs" / "coverage.md"
FEW_STEPS = Budget(
    warmup_steps=1,
    equilibrium_rounds=0,
    finish_rounds=1,
    student_steps=1,
    imprint_batches=1,
    imprint_iterations=1,
    rounding_images=16,
)
# Rounding in closed form takes minutes beyond.
_MOST_ROUNDED = 6_000_000
# Gradients and moments of more weights, beside the copies of these, do not fit into the memory of a laptop.
_MOST_TRAINED = 200_000_000
_SMALLEST_BATCHES = 0.05
_SECONDS = 1500
SMALLEST_COSINE = 0.999
_TOKEN_STD = 0.5
_COMPARED_IMAGES, _BATCH = 64, 16


@dataclass(frozen=True)
class Covered:
    """What became of a network: `error` is empty where every step passed.

    `own_cosine`: where the file's logits are too far from the simulation's, of the simulation's own in float64 to those
    in float32: what another order of sums alone does to this network.
    """

    name: str
    side: int
    parameters: int = 0
    has_batch_norm: bool = False
    layers: int = 0
    fused: int = 0
    operators: int = 0
    cosine: float = 0.0
    worst_cosine: float = 0.0
    agreement: float = 0.0
    worst_steps: float = 0.0
    megabytes: float = 0.0
    seconds: float = 0.0
    memory_gb: float = 0.0
    own_cosine: float = 1.0
    error: str = ""


def cover(subject: Subject) -> Covered:
    """Takes a network through all steps."""
    started = time.monotonic()
    network = with_random_weights(subject)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    budget = FEW_STEPS if parameters <= _MOST_ROUNDED else replace(FEW_STEPS, rounding_images=0)
    budget = budget if parameters <= _MOST_TRAINED else replace(budget, finish_rounds=0)
    BUDGETS["fast"], LARGE_IMAGE_BUDGETS["fast"] = budget, replace(budget, warmup_steps=0)
    options = make_options(
        bits="w8a8", effort="fast", input_shape=(3, subject.side, subject.side), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    covered = Covered(subject.name, subject.side, parameters)
    try:
        prepared = prepare(network, options)
        run = start_run(prepared, options, torch.device("cpu"))
        run.use_recipe(CAUSAL_RECIPE.shrunk(_SMALLEST_BATCHES))
        for _ in train(run):
            pass
        quantized = finish(prepared, run, options, {}, 0.0)
        has_statistics = prepared.has_statistics
        # Several copies of all weights, which the export of a large network needs the memory of.
        del network, prepared, run
        with tempfile.TemporaryDirectory() as folder:
            exported = export_onnx(quantized, Path(folder) / "network.onnx")
    except CausalDFQError as error:
        return replace(covered, error=str(error), seconds=time.monotonic() - started)
    parity = exported.parity
    is_near = parity.cosine >= SMALLEST_COSINE
    own_cosine = 1.0 if is_near else _cosine_in_double(quantized)
    return Covered(
        subject.name,
        subject.side,
        parameters,
        has_statistics,
        len(parity.layers),
        exported.fusion.fused,
        exported.fusion.total,
        parity.cosine,
        parity.worst_cosine,
        parity.agreement,
        max((layer.steps for layer in parity.layers), default=0.0),
        exported.size / 1e6,
        time.monotonic() - started,
        peak_memory_gb(),
        own_cosine,
        ""
        if is_near
        else f"the logits of the file have a cosine of {parity.cosine:.4f} to the simulation's, "
        f"these in float64 one of {own_cosine:.4f} to themselves in float32",
    )


def _cosine_in_double(quantized: QuantizedNetwork) -> float:
    """Of the logits of scenes in float64 to those in float32; the network is in float64 afterwards."""
    images = synthetic_images(quantized.record.options, _COMPARED_IMAGES)
    with torch.no_grad():
        single = torch.cat([quantized(chunk) for chunk in images.split(_BATCH)]).double()
        quantized.double()
        double = torch.cat([quantized(chunk) for chunk in images.double().split(_BATCH)])
    return float(torch.cosine_similarity(single.flatten(), double.flatten(), 0))


def with_random_weights(subject: Subject) -> nn.Module:
    """The network with random weights, as training would leave it in two respects.

    Its BatchNorms have seen scenes, and class and position tokens are as large as the patches they go with: a token of
    nearly zero, with which training begins, has one code on the patches' grid, and LayerNorm would enlarge the rest.
    """
    torch.manual_seed(0)
    network = subject.build().eval()
    for parameter in network.parameters():
        if parameter.ndim == 3 and len(parameter) == 1:
            nn.init.normal_(parameter, std=_TOKEN_STD)
        # Some heads begin at zero, and all their logits are the same.
        elif parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    random = torch.Generator().manual_seed(0)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    if norms:
        with torch.no_grad():
            network(draw_scenes(16, (3, subject.side, subject.side), random))
    return network.eval()


def write_page(results: dict[str, Any], path: Path) -> None:
    """docs/coverage.md from the results file."""
    runs = sorted(results["networks"], key=lambda run: run["name"])
    lines = [
        "# Coverage",
        "",
        "Networks with random weights: captured, quantized to w8a8 in a few steps, exported to ONNX and compared",
        "there with the simulation, layer by layer and on the logits. A network passes if no tensor of the file is",
        "more than one step from the simulation's on the file's own inputs, and the logits have a cosine of at least",
        f"{SMALLEST_COSINE}. BatchNorms have the statistics of procedural scenes. Class and position tokens are as",
        f"large as patches are, with a standard deviation of {_TOKEN_STD}, as training leaves them: they begin near",
        "zero, where the grid of the patches has one code, and LayerNorm would enlarge what that leaves of them.",
        f"Rounding in closed form is left out beyond {_MOST_ROUNDED / 1e6:.0f} M weights, and training beyond",
        f"{_MOST_TRAINED / 1e6:.0f} M. The list holds every classifier of torchvision, and of timm a small network of",
        "each convolutional or hybrid family, chosen by hand.",
        "",
    ]
    for source in ("torchvision", "timm"):
        own = [run for run in runs if run["name"].startswith(source + ":")]
        passed = [run for run in own if not run["error"]]
        known = {run["name"] for run in own}
        listed = [subject.name for subject in SUBJECTS if subject.name.startswith(source + ":")]
        not_run = [name.partition(":")[2] for name in listed if name not in known]
        lines += [
            f"## {source}: {len(passed)} of {len(own)} pass",
            "",
            *([f"Not run: {', '.join(not_run)}.", ""] if not_run else []),
            "| network | side | weights | BatchNorm | in integers | cosine | of an image | class | file, MB | result |",
            "|---|---:|---:|---|---:|---:|---:|---:|---:|---|",
        ]
        for run in own:
            name = f"| `{run['name'].partition(':')[2]}` | {run['side']} | {run['parameters'] / 1e6:.1f} M "
            if run["error"] and not run["layers"]:
                lines.append(f"{name}| | | | | | | {_cell(run['error'])} |")
                continue
            lines.append(
                f"{name}| {'yes' if run['has_batch_norm'] else 'no'} | {run['fused']} of {run['operators']} "
                f"| {run['cosine']:.5f} | {run['worst_cosine']:.4f} | {100 * run['agreement']:.0f} % "
                f"| {run['megabytes']:.1f} "
                f"| {_cell(run['error']) if run['error'] else 'passes'} |"
            )
        lines.append("")
    processors = sorted({run["processor"] for run in runs})
    lines += [
        "In integers: convolutions and matrix products that ONNX Runtime computes so, of all. Cosine: of the logits of",
        "all scenes, file and simulation; of an image: the smallest, where logits that are the same count as 1, all",
        "zeros too. Class: how often it is the same. Cosines below 1 are of operations that the runtime computes in",
        "float: random weights enlarge a single code's difference. Where one is too low, the same is told of the",
        "simulation in float64 beside itself in float32: so much does another order of sums alone change.",
        *(
            ["In rows of 0.0000 that pass, an image whose logits are all zero was counted as 0."]
            if any(run["layers"] and not run["error"] and run["worst_cosine"] == 0 for run in runs)
            else []
        ),
        "",
        "## Origin",
        "",
        f"{results['machine']['cores']} cores of {' or '.join(processors)}, torch "
        f"{results['versions']['torch']}; commits {', '.join(sorted({run['commit'][:10] for run in runs}))}.",
        "",
        "    python -m bench.coverage",
        "",
    ]
    write_text(path, "\n".join(lines))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(
    only: Annotated[str, typer.Option(help="Only networks whose name contains one of these.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Also those that the results file holds.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Also those that did not pass.")] = False,
    jobs: Annotated[int, typer.Option(help="Networks side by side.")] = 1,
    one: Annotated[str, typer.Option(hidden=True, help="This network alone, as JSON.")] = "",
) -> None:
    """Covers what is missing."""
    if one:
        print(json.dumps(asdict(cover(next(subject for subject in SUBJECTS if subject.name == one)))))
        return
    known: list[dict[str, Any]] = json.loads(RESULTS.read_text())["networks"] if RESULTS.exists() else []
    wanted = [subject for subject in SUBJECTS if any(part in subject.name for part in only.split(","))]
    done = {run["name"] for run in known if not (failed and run["error"])} if not again else set()
    origin = describe()
    with ThreadPoolExecutor(jobs) as pool:
        started = [pool.submit(_in_own_process, subject) for subject in wanted if subject.name not in done]
        for finished in as_completed(started):
            run = {**finished.result(), "commit": origin["commit"], "processor": origin["machine"]["processor"]}
            known = [other for other in known if other["name"] != run["name"]] + [run]
            print(f"{run['name']}: {run['error'] or 'passes'} in {run['seconds']:.0f} s", flush=True)
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            write_text(RESULTS, json.dumps({**origin, "networks": known}, indent=1) + "\n")
    write_page(json.loads(RESULTS.read_text()), PAGE)


def _in_own_process(subject: Subject) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.coverage", "--one", subject.name]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return asdict(Covered(subject.name, subject.side, error=f"not done after {_SECONDS} s", seconds=_SECONDS))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"])[-1]
        return asdict(Covered(subject.name, subject.side, error=f"crashed: {last}"))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    typer.run(main)
