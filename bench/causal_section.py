"""Sections of docs/results.md on what the parts of the recipe add: the causal losses, and each other part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from bench import accuracy
from bench.ablation import ABLATIONS, LONG, WITHOUT_DISCREPANCY
from bench.paired_test import PairedDifference, paired_difference
from causal_dfq.config import make_options
from causal_dfq.pipeline import prepare, start_run

_FEWEST_PAIRS = 5
_SIGNIFICANT = 0.05
# Of a run's causal analysis, and what the page calls it; P's own are what Q's compare with, and are not tested.
_OF_PRETRAINED = {
    "analysis_sensitivity_pretrained": "style sensitivity of P",
    "analysis_content_accuracy_pretrained": "content accuracy of P",
}
_TESTED = {
    "analysis_discrepancy": "interventional discrepancy",
    "analysis_sensitivity_quantized": "style sensitivity of Q",
    "analysis_content_accuracy_quantized": "content accuracy of Q",
    "analysis_cka": "CKA of P and Q",
    "analysis_attention_overlap": "overlap of where P and Q look",
}
# What was changed to make the losses help; not measured by this bench, hence no numbers.
_TRIED = """Tried on ResNet-20 w3a3 at effort balanced, one seed each, of which none helped: three times as many
generated contents in a batch; and, in the place of the discrepancy, at its weight and at ten times that, a form that is
zero where Q answers as P does: Q's difference between two styles held to P's. Not tried: the discrepancy without the
contrastive loss, on features in the place of logits, and in the finish alone."""
_KEPT = """What is kept and why, by agreement, which tells more than the drop does here: features, imprinted scenes,
blends, contents behind scenes and diversity win agreement on ResNet-32, and take none on ResNet-20 that its seeds
could show. Swing convolution wins none on ResNet-32; a low-pass filter and units fitted by gradient steps lose it.
These three are components of the field's methods here, and not of the recipe. In the recipe contents partly behind
scenes and blends of two classes are what hard samples are elsewhere, and finished scenes that are drawn again are the
replay of images; latents are optimized in `genie` alone: the recipe changes scenes until the float network sees classes
in them."""
_Pair = tuple[dict[str, Any], dict[str, Any]]


def causal_section(runs: list[dict[str, Any]]) -> str:
    """What the causal losses add: the drop without them less the drop with them, seed by seed."""
    share = causal_share()
    lines = [
        "## What the causal losses add",
        "",
        "The same run, seed and budget with the discrepancy and the contrastive loss, and without. Difference: points",
        "of drop that they save; p: exact paired test, two-sided.",
        "",
        "Both losses see images under interventions alone. Of the "
        f"{share.shown} contents that a batch of the quantized network shows in full, these are the {share.generated} "
        f"generated ones, under {share.styles} styles each: {share.styles * share.generated} of its {share.images} "
        "images. On the others (imprinted scenes, contents partly behind scenes, scenes) there is no intervention.",
        "",
        "| network | bits | effort | drop without | drop with | difference | seeds | p |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    pairs_of: dict[str, list[_Pair]] = {}
    efforts: list[str] = []
    for row, effort, pairs in _comparisons(runs, WITHOUT_DISCREPANCY, _FEWEST_PAIRS):
        without, found = _of_drops(pairs)
        lines.append(
            f"| `{row.network}` | {row.bits} {row.protocol} | {effort} | {without:.2f} | {without - found.mean:.2f} "
            f"| {found.mean:.2f} ± {found.spread:.2f} | {found.pairs} | {found.p:.3f} |"
        )
        pairs_of[f"`{row.network}` {row.bits}, {effort}"] = pairs
        efforts = list(dict.fromkeys([*efforts, effort]))
    if not pairs_of:
        return "\n".join([*lines[:2], "Not measured."])
    all_pairs = [pair for pairs in pairs_of.values() for pair in pairs]
    verdict = _verdict(_of_drops(all_pairs)[1], max(map(len, pairs_of.values())), efforts)
    return "\n\n".join(part for part in ("\n".join(lines), verdict, _analysis_table(pairs_of)) if part)


@dataclass(frozen=True)
class CausalShare:
    """Of a batch of Q: its images, the contents that it shows in full, and how many of these are generated."""

    images: int
    shown: int
    generated: int
    styles: int


@cache
def causal_share() -> CausalShare:
    """What the causal losses see of a batch, by the recipe as it stands: counted in a small network's run."""
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    options = make_options(bits="w4a4", effort="fast", input_shape=(3, 8, 8))
    run = start_run(prepare(nn.Sequential(*layers).eval(), options), options, torch.device("cpu"))
    drawn = run.student_images(run.random)
    styles = run.recipe.styles
    return CausalShare(len(drawn.images), run.recipe.student_contents, drawn.intervened // styles, styles)


def _verdict(found: PairedDifference, most_pairs: int, efforts: list[str]) -> str:
    """What all pairs together say, and whether a row by itself could say anything."""
    smallest = 2.0 ** (1 - most_pairs)
    alone = f"With {most_pairs} pairs the smallest p that this test can give is {smallest:g}" + (
        f": no row by itself can be significant at {_SIGNIFICANT}, only all rows together can. "
        if smallest >= _SIGNIFICANT
        else ". "
    )
    together = f"All {found.pairs} pairs together: {found.mean:+.2f} ± {found.spread:.2f} points, p = {found.p:.2f}"
    if found.p < _SIGNIFICANT and found.mean > 0:
        return f"{alone}{together}: the causal losses help."
    harm = "the causal losses harm"
    neither = "the causal losses neither help nor harm by an amount that these seeds can tell from chance"
    return (
        f"{alone}{together}: {harm if found.p < _SIGNIFICANT else neither}. This holds for effort "
        f"{' and '.join(efforts)}, and for both losses together. Distillation sees the same contents under the same "
        "styles and holds Q to P under each of them. Where style hardly moves P, which its own style sensitivity below "
        "tells, the discrepancy asks for little beyond that; where it moves P, it asks Q for the same answer under "
        f"another style, which P itself does not give.\n\n{_TRIED}"
    )


def _analysis_table(pairs_of: dict[str, list[_Pair]]) -> str:
    """The causal analysis at the end of the runs without the losses and with them, row by row, and all pairs' test."""
    lines = []
    for name, title in {**_OF_PRETRAINED, **_TESTED}.items():
        values = {row: _values_of(name, pairs) for row, pairs in pairs_of.items()}
        known = [pair for of_row in values.values() for pair in of_row]
        if len(known) < 2:
            continue
        means = [[f"{mean(of_kind):.4f}" for of_kind in zip(*of_row, strict=True)] for of_row in values.values()]
        cells = [", ".join(dict.fromkeys(of_row)) for of_row in means]
        without, full = map(list, zip(*known, strict=True))
        found = paired_difference(full, without)
        tested = f"{found.mean:+.4f} ± {found.spread:.4f} | {found.p:.3f}" if name in _TESTED else "|"
        lines.append(f"| {title} | {' | '.join(cells)} | {tested} |")
    if not lines:
        return ""
    return "\n".join(
        [
            "The [causal analysis](method.md#causal-analysis) at the end of the same runs: mean without the losses, "
            "mean with them, once where they are equal; of all pairs the difference, with less without. P: the float "
            "network, Q: the quantized one. With "
            f"{len(_TESTED)} quantities tested, p is significant below {_SIGNIFICANT / len(_TESTED):g}:",
            "",
            f"| quantity | {' | '.join(pairs_of)} | all pairs | p |",
            "|---|" + "---|" * len(pairs_of) + "---:|---:|",
            *lines,
        ]
    )


def _values_of(name: str, pairs: list[_Pair]) -> list[tuple[float, float]]:
    """A quantity without and with the losses, where both runs of a pair have it."""
    both = [(without["last_metrics"].get(name), full["last_metrics"].get(name)) for full, without in pairs]
    return [(without, full) for without, full in both if without is not None and full is not None]


def ablation_section(runs: list[dict[str, Any]]) -> str:
    """What each other part of the recipe adds, and what parts that are left out would."""
    lines = [
        "## What the other parts add",
        "",
        "The same run and seed with one thing changed (`bench/ablation.py`). Difference: points of drop that this",
        "costs, below 0 where it saves some; agreement: points of agreement with the float network that it wins, the",
        "finer measure of the two. ±: the standard deviation over the seeds, where there are several.",
    ]
    table: list[str] = []
    missing: list[str] = []
    compared: list[_Pair] = []
    for method in sorted(ABLATIONS.keys() - {WITHOUT_DISCREPANCY, LONG}):
        change = method.removeprefix("causal-").replace("-", " ")
        of_change = list(_comparisons(runs, method, 1))
        table += [_ablation_line(change, *found) for found in of_change]
        compared += [pair for _, _, pairs in of_change for pair in pairs]
        missing += [] if of_change else [change]
    if table:
        error = mean(changed["drop_standard_error"] for _, changed in compared)
        lines += [
            f"The paired standard error of a drop is {error:.2f} points: a difference below it says little.",
            "",
            "| change | network | bits | effort | drop | drop changed | difference | agreement | seeds |",
            "|---|---|---|---|---:|---:|---:|---:|---|",
            *table,
        ]
    if missing:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    if table:
        lines += ["", _KEPT]
    return "\n".join(lines)


def _ablation_line(change: str, row: accuracy.Row, effort: str, pairs: list[_Pair]) -> str:
    full, changed = (mean(run["drop"] for run in of_kind) for of_kind in zip(*pairs, strict=True))
    differences = (
        _mean_and_spread([altered[name] - kept[name] for kept, altered in pairs]) for name in ("drop", "agreement")
    )
    seeds = ", ".join(str(kept["seed"]) for kept, _ in pairs)
    cells = " | ".join([f"{full:.2f}", f"{changed:.2f}", *differences, seeds])
    return f"| {change} | `{row.network}` | {row.bits} {row.protocol} | {effort} | {cells} |"


def _mean_and_spread(values: list[float]) -> str:
    return f"{mean(values):+.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _of_drops(pairs: list[_Pair]) -> tuple[float, PairedDifference]:
    """The mean drop of the changed runs, and how far it lies above that of the full ones."""
    full, changed = ([run["drop"] for run in of_kind] for of_kind in zip(*pairs, strict=True))
    return mean(changed), paired_difference(changed, full)


def _comparisons(
    runs: list[dict[str, Any]], changed: str, fewest: int
) -> Iterator[tuple[accuracy.Row, str, list[_Pair]]]:
    """Row, effort, and the runs of `causal` beside those of a changed method, where so many seeds have both."""
    for row in accuracy.ROWS:
        for effort in sorted({run["effort"] for run in runs}):
            full, of_changed = (
                {
                    run["seed"]: run
                    for run in runs
                    if accuracy.is_of(run, row) and run["effort"] == effort and run["method"] == method
                }
                for method in ("causal", changed)
            )
            seeds = sorted(full.keys() & of_changed.keys())
            if len(seeds) >= fewest:
                yield row, effort, [(full[seed], of_changed[seed]) for seed in seeds]
