"""Sections of docs/results.md: this project's method beside the field's, and its efforts beside each other."""

from __future__ import annotations

from typing import Any

from bench import accuracy
from causal_dfq.training.methods import METHODS

CAUSAL, GENIE = "causal", "genie"
# Of the gap between GENIE's drop and that on real images, ours may leave so much.
_LARGEST_GAP = 1 / 3
_LEAST_WAY, _MOST_TIME = 0.8, 1 / 5


def rivals_section(entries: list[dict[str, Any]]) -> str:
    """Each row and effort with the best method of the field, its time, and where ours lies between GENIE and `real`."""
    lines = [
        "## Beside the field's methods in the same budget",
        "",
        "The best of the field's methods at the same effort. Its time in units of ours, where both ran on processors",
        "of one kind; gap: where our drop lies between that on real images (0) and GENIE's (1), at most "
        f"{_LARGEST_GAP:.2f} wanted. Seeds: ours, theirs.",
        "",
        "| network | bits | effort | drop | best of the field | its drop | its time | beaten | gap | seeds |",
        "|---|---|---|---:|---|---:|---:|---|---:|---|",
    ]
    for row in accuracy.ROWS:
        of_row = {(e["method"], e["effort"]): e for e in entries if accuracy.is_of(e, row)}
        for effort in ("fast", "balanced", "best"):
            ours = of_row.get((CAUSAL, effort))
            rivals = [of_row[m, effort] for m in METHODS if m != CAUSAL and (m, effort) in of_row]
            if ours is None or not rivals:
                continue
            best = min(rivals, key=lambda entry: float(entry["drop"]))
            lines.append(
                f"| `{row.network}` | {row.bits} {row.protocol} | {effort} | {accuracy.drop_text(ours)} "
                f"| {best['method']}, of {len(rivals)} | {accuracy.drop_text(best)} "
                f"| {_time(best, ours)} | {'yes' if ours['drop'] < best['drop'] else 'no'} "
                f"| {_gap(ours, of_row.get((GENIE, effort)), of_row.get((accuracy.REAL, effort)))} "
                f"| {len(ours['seeds'])}, {len(best['seeds'])} |"
            )
    return "\n".join(lines)


def _time(entry: dict[str, Any], ours: dict[str, Any]) -> str:
    """The time of an entry in units of ours, where both ran on processors of one kind."""
    is_comparable = entry["processors"] == ours["processors"] and len(ours["processors"]) == 1
    return f"{entry['seconds'] / ours['seconds']:.2f}" if is_comparable else ""


def _gap(ours: dict[str, Any], genie: dict[str, Any] | None, real: dict[str, Any] | None) -> str:
    if genie is None or real is None or genie["drop"] <= real["drop"]:
        return ""
    return f"{(ours['drop'] - real['drop']) / (genie['drop'] - real['drop']):.2f}"


def efforts_section(entries: list[dict[str, Any]]) -> str:
    """How far `balanced` goes from `fast` to `best`, and in what share of the time."""
    lines = [
        "## Efforts",
        "",
        f"Way: the share of what `best` saves over `fast` that `balanced` saves, {_LEAST_WAY:.0%} wanted; time: its",
        f"share of the time of `best`, {_MOST_TIME:.0%} wanted.",
        "",
        "| network | bits | fast | balanced | best | way | time |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in accuracy.ROWS:
        of_row = {e["effort"]: e for e in entries if accuracy.is_of(e, row) and e["method"] == CAUSAL}
        if len(of_row) < 3:
            continue
        fast, balanced, best = (of_row[effort] for effort in ("fast", "balanced", "best"))
        saved = fast["drop"] - best["drop"]
        way = f"{(fast['drop'] - balanced['drop']) / saved:.0%}" if saved > 0 else ""
        lines.append(
            f"| `{row.network}` | {row.bits} {row.protocol} | {accuracy.drop_text(fast)} "
            f"| {accuracy.drop_text(balanced)} | {accuracy.drop_text(best)} | {way} "
            f"| {balanced['seconds'] / best['seconds']:.0%} |"
        )
    return "\n".join(lines)
