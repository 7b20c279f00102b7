"""A section of docs/results.md: ours in no more time than each of the field's methods at effort `best`."""

from __future__ import annotations

from typing import Any

from bench import accuracy
from bench.side_by_side import (
    CAUSAL,
    EFFORTS,
    LOAD,
    beaten_text,
    load_of,
    noise_of,
    on_common_seeds,
    runs_by_method,
    told_answers,
)
from causal_dfq.training.methods import METHODS


def equal_time_section(runs: list[dict[str, Any]]) -> str:
    """Each of the field's methods at `best` beside our highest effort that took no longer; empty of none."""
    lines: list[str] = []
    answers: list[str] = []
    for row in accuracy.ROWS:
        ours = {effort: runs_by_method(runs, row, effort).get(CAUSAL, []) for effort in EFFORTS}
        for method, theirs in sorted(runs_by_method(runs, row, "best").items()):
            found = _in_their_time(ours, theirs) if method in METHODS and method != CAUSAL else None
            if found is not None:
                answers.append(found[0])
                lines.append(f"| `{row.network}` | {row.bits} {row.protocol} | {method} {found[1]}")
    if not lines:
        return ""
    return "\n".join(
        [
            "## In no more time than the field's methods",
            "",
            "Each of the field's methods at effort `best` beside our highest effort that took no longer, on the seeds",
            "that both have, of runs that had",
            f"{LOAD}.",
            "Beaten: as above.",
            told_answers(answers),
            "",
            "| network | bits | method | its drop | its minutes | our effort | our drop | our minutes | beaten "
            "| seeds |",
            "|---|---|---|---:|---:|---|---:|---:|---|---|",
            *lines,
        ]
    )


def _in_their_time(ours: dict[str, list[dict[str, Any]]], theirs: list[dict[str, Any]]) -> tuple[str, str] | None:
    """Whether ours loses less, and the cells that show it; None where no comparable run of ours was so short."""
    for effort in reversed(EFFORTS):
        shared = {(run["seed"], load_of(run)) for run in ours[effort]} & {(run["seed"], load_of(run)) for run in theirs}
        of_method = {
            method: [run for run in of_kind if (run["seed"], load_of(run)) in shared]
            for method, of_kind in ((CAUSAL, ours[effort]), ("field", theirs))
        }
        found = on_common_seeds(of_method, CAUSAL, "field")
        if not found or found[0]["seconds"] > found[1]["seconds"]:
            continue
        first, second = found
        noise = max(noise_of(accuracy.summarize(of_kind)[0]) for of_kind in (ours[effort], theirs))
        beaten = beaten_text(second["drop"] - first["drop"], noise)
        return beaten, (
            f"| {accuracy.drop_text(second)} | {second['seconds'] / 60:.1f} | {effort} | {accuracy.drop_text(first)} "
            f"| {first['seconds'] / 60:.1f} | {beaten} | {', '.join(map(str, first['seeds']))} |"
        )
    return None
