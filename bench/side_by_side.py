"""Sections of docs/results.md: this project's method beside the field's, and its efforts beside each other."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from typing import Any

from bench import accuracy
from causal_dfq.training.methods import METHODS

CAUSAL, GENIE = "causal", "genie"
# Of the gap between GENIE's drop and that on real images, ours may leave so much.
_LARGEST_GAP = 1 / 3
_LEAST_WAY, _MOST_TIME = 0.8, 1 / 5
_SAME = 1e-9
_EFFORTS = ("fast", "balanced", "best")
# What was tried and not kept; not measured by this bench, hence no numbers.
_TRIED = """Tried and not kept on CIFAR, on one seed: a `balanced` of about a fifth of the rounds and scenes of `best`.
It took somewhat more than a fifth of the time, not much above `fast`, and left about half of the way; `balanced` is the
default, and with it ResNet-32 w4a4 deploy would lose more than it may. Three fifths of its rounds, on a GPU, went all
of the way on ResNet-20 w2a4, but two thirds of it on ResNet-32. Twice the learning rates, half the images a batch in
twice the rounds, and the scenes of `best` with so few rounds each won nothing in that time. On MobileNetV1 a quarter
of the scenes, each of four times the iterations, won nothing over `fast`; biases and step sizes trained together after
rounding, the codes held, came nearer to the float network on synthetic images alone."""
_LOAD = "the same processor, accelerator, threads and number of runs side by side"


def rivals_section(runs: list[dict[str, Any]]) -> str:
    """Each row and effort with the best method of the field, its time, and where ours lies between GENIE and `real`."""
    lines = [
        "## Beside the field's methods at the same effort",
        "",
        "The best of the field's methods, by its drop over all its seeds. Compared on the seeds that both have (on all",
        "where they share none), named last: drops, times, and the agreement with the float network in %, ours first.",
        "Beaten: within noise where the drops differ, to whichever side, by less than the largest of both methods'",
        "paired standard errors of the images and standard deviations over all their seeds. Its time is in units of",
        f"ours, blank where not all of these runs had {_LOAD}.",
        f"Gap: where our drop lies between that on real images (0) and GENIE's (1), at most {_LARGEST_GAP:.2f} wanted,",
        "on the seeds that all three have; blank where one was not run, where they share no seed, and where GENIE's",
        "drop is not above that on real images.",
        "",
        "| network | bits | effort | drop | best of the field | its drop | agreement | beaten | its time | gap "
        "| seeds |",
        "|---|---|---|---:|---|---:|---:|---|---:|---:|---|",
    ]
    for row in accuracy.ROWS:
        for effort in _EFFORTS:
            of_method = runs_by_method(runs, row, effort)
            rivals = [method for method in METHODS if method != CAUSAL and method in of_method]
            if CAUSAL in of_method and rivals:
                lines.append(f"| `{row.network}` | {row.bits} {row.protocol} | {effort} {_rivalry(of_method, rivals)}")
    return "\n".join(lines)


def runs_by_method(runs: list[dict[str, Any]], row: accuracy.Row, effort: str) -> dict[str, list[dict[str, Any]]]:
    """The runs of a row at an effort, a list a method."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if accuracy.is_of(run, row) and run["effort"] == effort:
            found.setdefault(run["method"], []).append(run)
    return found


def _rivalry(of_method: dict[str, list[dict[str, Any]]], rivals: Sequence[str]) -> str:
    """The cells that compare ours with the best rival."""
    all_seeds = {method: accuracy.summarize(of_method[method])[0] for method in of_method}
    best = min(rivals, key=lambda method: float(all_seeds[method]["drop"]))
    ours, theirs = on_common_seeds(of_method, CAUSAL, best) or (all_seeds[CAUSAL], all_seeds[best])
    time = _share_of_time(_of_seeds(of_method[best], theirs["seeds"]), _of_seeds(of_method[CAUSAL], ours["seeds"]))
    noise = max(_noise(all_seeds[CAUSAL]), _noise(all_seeds[best]))
    return (
        f"| {accuracy.drop_text(ours)} | {best}, of {len(rivals)} | {accuracy.drop_text(theirs)} "
        f"| {ours['agreement']:.2f}, {theirs['agreement']:.2f} | {_beaten(theirs['drop'] - ours['drop'], noise)} "
        f"| {'' if time is None else f'{time:.2f}'} | {_gap(of_method)} | {_seeds(ours, theirs)} |"
    )


def on_common_seeds(of_method: dict[str, list[dict[str, Any]]], *methods: str) -> list[dict[str, Any]]:
    """An entry a method, of the seeds that all have; none where a method is missing or they share no seed."""
    common = set.intersection(*({run["seed"] for run in of_method.get(method, [])} for method in methods))
    if not common:
        return []
    return [accuracy.summarize(_of_seeds(of_method[method], common))[0] for method in methods]


def _of_seeds(runs: list[dict[str, Any]], seeds: Collection[int]) -> list[dict[str, Any]]:
    return [run for run in runs if run["seed"] in seeds]


def _noise(entry: dict[str, Any]) -> float:
    """How far a drop may lie from another one by chance: by the images or by the seed, what is more."""
    return max(float(entry["paired_error"]), float(entry["drop_spread"] or 0.0))


def _beaten(saved: float, noise: float) -> str:
    # Equal counts of right answers can differ in their last binary digits.
    if abs(saved) < _SAME:
        return "no"
    answer = "yes" if saved > 0 else "no"
    return f"{answer}, within noise" if abs(saved) < noise else answer


def _seeds(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    first, second = (", ".join(map(str, entry["seeds"])) for entry in (ours, theirs))
    return first if first == second else f"ours {first}; theirs {second}"


def _share_of_time(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> float | None:
    """The mean time of runs in units of that of others; None where some are missing or loads differ."""
    if not runs or not others or len({_load(run) for run in [*runs, *others]}) > 1:
        return None
    first, second = (statistics.mean(run["seconds"] for run in each) for each in (runs, others))
    return float(first / second)


def _under_one_load(
    runs: list[dict[str, Any]], others: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The runs of both under the load that both share, that of most runs where they share several."""
    shared = [_load(run) for run in [*runs, *others] if _load(run) in set(map(_load, runs)) & set(map(_load, others))]
    if not shared:
        return [], []
    load = statistics.mode(shared)
    return [run for run in runs if _load(run) == load], [run for run in others if _load(run) == load]


def _load(run: dict[str, Any]) -> tuple[Any, ...]:
    """What seconds depend on beside the work itself."""
    machine = run["origin"]["machine"]
    return machine["processor"], machine.get("accelerator"), run["threads"], run["jobs"]


def _gap(of_method: dict[str, list[dict[str, Any]]]) -> str:
    found = on_common_seeds(of_method, CAUSAL, GENIE, accuracy.REAL)
    if not found:
        return ""
    ours, genie, real = found
    if genie["drop"] <= real["drop"]:
        return ""
    return f"{(ours['drop'] - real['drop']) / (genie['drop'] - real['drop']):.2f}"


def rivals_note(entries: list[dict[str, Any]]) -> str:
    """What the field's methods here are not, with their drops beside those of their papers where both are known."""
    beside = [
        f"{entry['drop']:.2f} points on `{row.network}` {row.bits}, {row.fields_best.split()[0]} in its paper"
        for row in accuracy.ROWS
        for entry in entries
        if accuracy.is_of(entry, row)
        and (entry["method"], entry["effort"]) == ("synq", "best")
        and row.fields_best.endswith("(SynQ)")
    ]
    known = f" `synq` at effort best loses {'; '.join(beside)}, from another checkpoint." if beside else ""
    return (
        "The field's methods train the quantized network with the learning rates that were chosen for `causal`, and "
        f"had no search of their own: they are no measure of what their authors' programs reach.{known}"
    )


def efforts_section(runs: list[dict[str, Any]]) -> str:
    """How far `balanced` goes from `fast` to `best`, in what share of the time, and whether that is what is wanted."""
    lines, is_met = [], []
    for row in accuracy.ROWS:
        of_effort = {effort: runs_by_method(runs, row, effort).get(CAUSAL, []) for effort in _EFFORTS}
        if sum(map(bool, of_effort.values())) < 2:
            continue
        fast, balanced, best = (next(iter(accuracy.summarize(of_effort[effort])), None) for effort in _EFFORTS)
        way = _way(fast, balanced, best)
        time = _share_of_time(*_under_one_load(of_effort["balanced"], of_effort["best"]))
        is_met.append(_is_met(way, time))
        drops = " | ".join("" if entry is None else accuracy.drop_text(entry) for entry in (fast, balanced, best))
        time_of_fast = _share_of_time(*_under_one_load(of_effort["fast"], of_effort["best"]))
        shares = " | ".join("" if share is None else f"{share:.0%}" for share in (time_of_fast, way, time))
        lines.append(f"| `{row.network}` | {row.bits} {row.protocol} | {drops} | {shares} |")
    if not lines:
        return "## Efforts\n\nNot measured."
    return "\n".join(
        [
            "## Efforts",
            "",
            "Drops of `causal`. Way: the share of what `best` saves over `fast` that `balanced` saves. Time: the",
            "share of the time of `best` that an effort takes. Without ±: one seed. Blank: not measured; the way also",
            "where `best` saves less over `fast` than the paired standard error of the images. The time is that of the",
            f"runs of both, of whatever seeds, that had {_LOAD}: blank",
            "where there are none.",
            f"Wanted of every row: {_LEAST_WAY:.0%} of the way in {_MOST_TIME:.0%} of the time. {_verdict(is_met)}",
            *([_TRIED] if False in is_met else []),
            "",
            "| network | bits | fast | balanced | best | time, fast | way, balanced | time, balanced |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
            *lines,
        ]
    )


def _way(fast: dict[str, Any] | None, balanced: dict[str, Any] | None, best: dict[str, Any] | None) -> float | None:
    if fast is None or balanced is None or best is None:
        return None
    saved = fast["drop"] - best["drop"]
    # Below the error of the images there is no way to go that they could show.
    return None if saved <= best["paired_error"] else float((fast["drop"] - balanced["drop"]) / saved)


def _is_met(way: float | None, time: float | None) -> bool | None:
    """Whether a row has what is wanted; None where what is measured does not tell."""
    is_short, is_slow = way is not None and way < _LEAST_WAY, time is not None and time > _MOST_TIME
    if is_short or is_slow:
        return False
    return None if way is None or time is None else True


def _verdict(is_met: list[bool | None]) -> str:
    told = [row for row in is_met if row is not None]
    if not told:
        return "Whether that is reached was not measured."
    verdict = "reached" if all(told) else "missed"
    return f"That is {verdict} (rows that can tell: {len(told)}; of these reach it: {sum(told)})."
