"""Bits chosen for each layer beside one width for all, in the same number of bytes.

    python -m bench.mixed_precision [--efforts fast] [--seeds 0,1,2]

The weights of the network with one width are weighed, and bits auto get that as their budget. Writes
bench/results/mixed_precision.json, and the table of docs/method.md.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.accuracy import MOBILENET, RESNET20, RESNET32, combined
from bench.changed_run import Case, quantize_changed
from bench.environment import ROOT, describe
from bench.networks import Subject, evaluate_on_sets, load_subject
from bench.write_tables import by_case, origin_text, replace_between, seeds_text
from causal_dfq.config import AUTO_BITS, SizeBudget
from causal_dfq.files import write_text
from causal_dfq.inspection import inspect_layers
from causal_dfq.quantized import QuantizedNetwork

RESULTS = ROOT / "bench" / "results" / "mixed_precision.json"
PAGE = ROOT / "docs" / "method.md"
# One width whose bytes the bits 2, 4 and 8 can share out; 3 bits have no layer of their own among them.
CASES = ((RESNET20, "w4a8"), (RESNET20, "w3a8"), (RESNET32, "w4a8"), (RESNET32, "w3a8"), (MOBILENET, "w4a8"))


def weight_bytes(quantized: QuantizedNetwork) -> int:
    """What the rounded weights of all layers take."""
    return sum(layer.size for layer in inspect_layers(quantized))


def widths(quantized: QuantizedNetwork) -> dict[str, int]:
    """How many layers have each width."""
    found = Counter(layer.bits for layer in inspect_layers(quantized))
    return {str(bits): found[bits] for bits in sorted(found)}


def measure(subject: Subject, case: Case, shared: Path) -> dict[str, Any]:
    """One run: drop, bytes of the weights, widths of the layers."""
    quantized = quantize_changed(subject, case)
    drop = combined(list(evaluate_on_sets(quantized, subject, shared).values()))["drop"]
    return {"drop": drop, "bytes": weight_bytes(quantized), "widths": widths(quantized)}


def table(results: dict[str, Any]) -> str:
    """Drop with one width and with bits auto, a line a network, width and effort."""
    lines = [
        "One width for all layers, and bits auto in as many bytes:",
        "",
        "| network | one width | effort | kB | drop, one width | drop, auto | layers at 2, 4, 8 bits | seeds |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    for (network, bits, effort), runs in by_case(results).items():
        chosen = runs[0]["auto"]["widths"]
        lines.append(
            f"| `{network}` | {bits} deploy | {effort} | {runs[0]['uniform']['bytes'] / 1000:.0f} "
            f"| {_drop(runs, 'uniform')} | {_drop(runs, 'auto')} "
            f"| {', '.join(str(chosen.get(width, 0)) for width in ('2', '4', '8'))} | {seeds_text(runs)} |"
        )
    lines += [
        "",
        f"Points of top-1 on development images, mean and standard deviation; {origin_text(results)}",
    ]
    return "\n".join(lines)


def _drop(runs: list[dict[str, Any]], name: str) -> str:
    drops = [run[name]["drop"] for run in runs]
    spread = f" ± {statistics.stdev(drops):.2f}" if len(drops) > 1 else ""
    return f"{statistics.mean(drops):.2f}{spread}"


def main(
    shared: Annotated[Path, typer.Option(help="Folder with data/ and checkpoints/.")] = ROOT.parent / "shared",
    efforts: Annotated[str, typer.Option(help="Comma-separated.")] = "fast",
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0",
) -> None:
    """Measures both, case by case in turn."""
    runs: list[dict[str, Any]] = []
    for seed in map(int, seeds.split(",")):
        for effort in efforts.split(","):
            for network, bits in CASES:
                subject = load_subject(network, shared)
                one = Case(bits, "deploy", effort, seed)  # type: ignore[arg-type]
                uniform = measure(subject, one, shared)
                budget = SizeBudget(bytes=uniform["bytes"])
                auto = measure(subject, Case(AUTO_BITS, "deploy", one.effort, seed, size_budget=budget), shared)
                runs.append(
                    {"network": network, "bits": bits, "effort": effort, "seed": seed, "uniform": uniform, "auto": auto}
                )
                print(runs[-1], flush=True)
                results = {**describe(), "runs": runs}
                write_text(RESULTS, json.dumps(results, indent=1) + "\n")
                write_text(PAGE, replace_between(PAGE.read_text(), "mixed-precision", table(results)))


if __name__ == "__main__":
    typer.run(main)
