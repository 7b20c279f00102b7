"""The main job measured: drop of top-1 from float32 and time, on development images, three seeds.

    python -m bench.main_job [--shared ../shared] [--seeds 0,1,2] [--only NAME]

Writes bench/results/main_job.json after every run, and prints the table. A stopped bench goes on from
there: runs that the file holds of the same package, versions and machine are kept. The last step is
reported, never the best; the images reach nothing but the final evaluation. Each run is a process of
its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.environment import ROOT, describe, is_same_package, peak_memory_gb
from bench.networks import evaluate_on_sets, load_subject
from causal_dfq.files import write_text

RESULTS = ROOT / "bench" / "results" / "main_job.json"


@dataclass(frozen=True)
class Case:
    """One row of the table, with the drop (points of top-1) and the time (seconds) it must reach."""

    network: str
    data: str
    bits: str
    effort: str
    largest_drop: float
    longest_seconds: float
    protocol: str = "deploy"


CASES = (
    Case("cifar10_resnet20_akamaster", "cifar10_dev.npz", "w8a8", "fast", 0.3, 60),
    Case("cifar10_resnet20_akamaster", "cifar10_dev.npz", "w4a4", "balanced", 2.0, 600),
    Case("cifar100_resnet32b_fhempcnn", "cifar100_dev.npz", "w4a4", "balanced", 4.5, 900),
    Case("mobilenetv2-cifar10", "cifar10_dev.npz", "w4a4", "balanced", 6.0, 900),
)


def run_case(case: Case, seed: int, shared: Path) -> dict[str, Any]:
    """Quantizes and evaluates; the time runs from the network in memory to the finished network."""
    import torch

    import causal_dfq

    subject = load_subject(case.network, shared)
    started = time.monotonic()
    quantized = causal_dfq.quantize(
        subject.network,
        case.bits,
        subject.input_shape,
        protocol=case.protocol,
        effort=case.effort,
        mean=subject.mean,
        std=subject.std,
        seed=seed,
        device="cpu",
    )
    seconds = time.monotonic() - started
    memory = peak_memory_gb()
    evaluation = evaluate_on_sets(quantized, subject, shared)[case.data]
    return {
        **asdict(case),
        "seed": seed,
        "seconds": seconds,
        "peak_memory_gb": memory,
        "threads": torch.get_num_threads(),
        "last_metrics": quantized.record.last_metrics,
        "evaluation": evaluation,
    }


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a case: mean and sample standard deviation over seeds, and whether the limits are met."""
    rows = []
    for case in CASES:
        of_case = [run for run in runs if all(run[key] == value for key, value in asdict(case).items())]
        of_case.sort(key=lambda run: int(run["seed"]))
        if not of_case:
            continue
        drops = [run["evaluation"]["drop"] for run in of_case]
        seconds = [run["seconds"] for run in of_case]
        rows.append(
            {
                **asdict(case),
                "seeds": [run["seed"] for run in of_case],
                "images": of_case[0]["evaluation"]["images"],
                "float_top1": of_case[0]["evaluation"]["float_top1"],
                "top1": statistics.mean(run["evaluation"]["top1"] for run in of_case),
                "drop": statistics.mean(drops),
                "drop_spread": statistics.stdev(drops) if len(drops) > 1 else None,
                "worst_drop": max(drops),
                "paired_error": statistics.mean(run["evaluation"]["drop_standard_error"] for run in of_case),
                "seconds": statistics.mean(seconds),
                "longest": max(seconds),
                "peak_memory_gb": max(run["peak_memory_gb"] for run in of_case),
            }
        )
    return rows


def kept_runs(results: Path) -> list[dict[str, Any]]:
    """The runs of an earlier results file, where they were measured with the package as it is."""
    if not results.exists():
        return []
    earlier = json.loads(results.read_text())
    return [{"commit": earlier["commit"], **run} for run in earlier["runs"]] if is_same_package(earlier) else []


def render(rows: list[dict[str, Any]]) -> Table:
    """The table that a person reads."""
    table = Table(title="main job")
    for column in ("network", "bits", "effort", "FP32", "quantized", "drop", "asked", "seconds", "asked", "met"):
        table.add_column(column, justify="left" if column in ("network", "bits", "effort") else "right")
    for row in rows:
        spread = "" if row["drop_spread"] is None else f" ± {row['drop_spread']:.2f}"
        is_met = row["drop"] <= row["largest_drop"] and row["longest"] <= row["longest_seconds"]
        table.add_row(
            row["network"],
            f"{row['bits']} {row['protocol']}",
            row["effort"],
            f"{row['float_top1']:.2f}",
            f"{row['top1']:.2f}",
            f"{row['drop']:.2f}{spread}",
            f"{row['largest_drop']:.1f}",
            f"{row['seconds']:.0f}",
            f"{row['longest_seconds']:.0f}",
            "yes" if is_met else "no",
        )
    return table


def main(
    shared: Annotated[Path, typer.Option(help="Folder with data/ and checkpoints/.")] = ROOT.parent / "shared",
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1,2",
    only: Annotated[str, typer.Option(help="Only rows whose network and bits contain this.")] = "",
    out: Annotated[Path, typer.Option(help="The results file.")] = RESULTS,
    one: Annotated[str, typer.Option(hidden=True, help="CASE,SEED: one run, as JSON on standard output.")] = "",
) -> None:
    """Runs every row for every seed, seeds outermost, so that a slow hour meets all rows alike."""
    if one:
        index, seed = map(int, one.split(","))
        print(json.dumps(run_case(CASES[index], seed, shared)))
        return
    origin = describe()
    runs = kept_runs(out)
    measured = {(run["network"], run["bits"], run["protocol"], run["effort"], run["seed"]) for run in runs}
    for seed in map(int, seeds.split(",")):
        for index, case in enumerate(CASES):
            if only not in f"{case.network} {case.bits}":
                continue
            if (case.network, case.bits, case.protocol, case.effort, seed) in measured:
                continue
            command = [sys.executable, "-m", "bench.main_job", "--shared", str(shared), "--one", f"{index},{seed}"]
            with tempfile.TemporaryFile("w+") as output:
                subprocess.run(command, cwd=ROOT, stdout=output, check=True)
                output.seek(0)
                run = {"commit": origin["commit"], **json.loads(output.read().splitlines()[-1])}
            runs.append(run)
            drop, seconds = run["evaluation"]["drop"], run["seconds"]
            print(f"{case.network} {case.bits} seed {seed}: drop {drop:.2f} in {seconds:.0f} s", flush=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            content = {**origin, "rows": summarize(runs), "runs": runs}
            write_text(out, json.dumps(content, indent=1) + "\n")
    # A narrow terminal would cut the names of the networks.
    Console(width=max(Console().width, 120)).print(render(summarize(runs)))


if __name__ == "__main__":
    typer.run(main)
