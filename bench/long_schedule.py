"""The longer schedule of docs/results_gpu.md, and what it says of the rows that miss their goals on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from bench import accuracy
from bench.ablation import LONG, LONGER
from causal_dfq.training.budget import BUDGETS, CAUSAL_RECIPE

# Xu et al., ECCV 2020, on CIFAR: 400 epochs of 200 steps.
_PAPERS_STEPS, _PAPERS_BATCH = 400 * 200, 200


def long_section(entries: list[dict[str, Any]]) -> str:
    """The longer schedule beside effort `best`."""
    budget, images = BUDGETS["best"], LONGER.batch * CAUSAL_RECIPE.student_images
    rounds = sum(int(LONGER.rounds * each) for each in (budget.equilibrium_rounds, budget.finish_rounds))
    steps = rounds * budget.student_steps
    lines = [
        "## A longer schedule",
        "",
        f"Effort best with {LONGER.scenes:,} imprinted scenes of {LONGER.imprint_iterations} iterations, "
        f"{LONGER.rounds} times the rounds, and",
        f"{LONGER.batch} times the images in a batch of the quantized network: {steps:,} steps of {images} images.",
        f"GDFQ's paper has {_PAPERS_STEPS:,} of {_PAPERS_BATCH}, which the time on this GPU did not allow: these are",
        f"{steps / _PAPERS_STEPS:.0%} of its steps and {steps * images / (_PAPERS_STEPS * _PAPERS_BATCH):.0%} of its",
        "images. Agreement with the float network, the finer measure, in %.",
        "",
        "| network | bits | goal | drop, best | drop, longer | agreement, best | agreement, longer | field's best drop "
        "| minutes | seeds |",
        "|---|---|---:|---:|---:|---:|---:|---|---:|---|",
    ]
    for row in accuracy.ROWS:
        long, best = (accuracy.find(entries, row, method, "best") for method in (LONG, "causal"))
        if long is not None:
            drop, agreement = ("", "") if best is None else (accuracy.drop_text(best), f"{best['agreement']:.2f}")
            lines.append(
                f"| `{row.network}` | {row.bits} {row.protocol} | {row.largest_drop} | {drop} "
                f"| {accuracy.drop_text(long)} | {agreement} | {long['agreement']:.2f} | {row.fields_best or '-'} "
                f"| {long['seconds'] / 60:.1f} | {', '.join(map(str, long['seeds']))} |"
            )
    return "\n".join(lines)


def long_note(entries: list[dict[str, Any]], rows: Sequence[accuracy.Row], runs: list[dict[str, Any]]) -> list[str]:
    """One paragraph on those of the rows that the longer schedule was run for; none where it was run for none.

    `entries` are of the GPU; `runs` are those of the page, which the same seeds are looked up in.
    """
    found = [(row, accuracy.find(entries, row, LONG, "best")) for row in rows]
    told = [
        f"{accuracy.drop_text(entry)} on `{row.network}` {row.bits} (goal {row.largest_drop}; "
        f"{accuracy.named_seeds(entry['seeds'])}{_beside_best(row, entry, runs)})"
        for row, entry in found
        if entry is not None
    ]
    if not told:
        return []
    return [
        f"With {LONGER.rounds} times the rounds and {LONGER.batch} times the images a batch, "
        f"[on a GPU](results_gpu.md#a-longer-schedule), the drop is {'; '.join(told)}."
    ]


def _beside_best(row: accuracy.Row, entry: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """The drop of `best` on the seeds of an entry; nothing where one of them was not run."""
    drops = [
        run["drop"]
        for run in runs
        if accuracy.is_of(run, row)
        and (run["method"], run["effort"]) == ("causal", "best")
        and run["seed"] in entry["seeds"]
    ]
    return f"; `best`: {mean(drops):.2f}" if len(drops) == len(entry["seeds"]) else ""
