"""The accuracy bench's summary and page, from made-up runs."""

import math
from pathlib import Path
from typing import Any

import pytest

from bench import accuracy
from bench.ablation import LONG, WITHOUT_DISCREPANCY
from bench.paired_test import paired_difference
from bench.side_by_side import efforts_section, rivals_section
from bench.write_results import (
    ablation_section,
    causal_section,
    draw_against_bits,
    draw_against_time,
    goals_section,
    gpu_page,
    long_section,
    methods_section,
)

MACHINE = {"cores": 2, "processor": "CPU"}


def run(seed: int, drop: float, method: str = "causal", effort: str = "best", row: int = 0) -> dict[str, Any]:
    of = accuracy.ROWS[row]
    return {
        "network": of.network,
        "protocol": of.protocol,
        "bits": of.bits,
        "method": method,
        "effort": effort,
        "seed": seed,
        "seconds": 600.0,
        "peak_memory_gb": 1.0,
        "top1": 91.62 - drop,
        "float_top1": 91.62,
        "drop": drop,
        "drop_standard_error": 0.3,
        "images": 5000,
        "origin": {"command": "python -m bench.accuracy", "machine": MACHINE},
        "commit": "abc",
    }


RUNS = [run(1, 1.0), run(0, 0.5), run(0, 2.0, "genie"), run(0, 5.0, row=1)]


def test_seeds_are_averaged_and_methods_kept_apart() -> None:
    entries = accuracy.summarize(RUNS)
    first = entries[0]
    assert first["seeds"] == [0, 1]
    assert first["drop"] == pytest.approx(0.75)
    assert first["drop_spread"] == pytest.approx(math.sqrt(0.125))
    assert [entry["method"] for entry in entries] == ["causal", "genie", "causal"]
    assert entries[1]["drop_spread"] is None


def test_sets_are_weighed_by_their_images() -> None:
    both = accuracy.combined(
        [
            {
                "images": 300,
                "top1": 60.0,
                "float_top1": 62.0,
                "drop": 2.0,
                "agreement": 90.0,
                "drop_standard_error": 0.4,
            },
            {
                "images": 100,
                "top1": 80.0,
                "float_top1": 86.0,
                "drop": 6.0,
                "agreement": 70.0,
                "drop_standard_error": 0.8,
            },
        ]
    )
    assert both["drop"] == pytest.approx(3.0)
    assert both["top1"] == pytest.approx(65.0)
    assert both["drop_standard_error"] == pytest.approx(math.hypot(0.3, 0.2))


def test_the_page_tells_drop_goal_and_what_was_not_measured() -> None:
    entries = accuracy.summarize(RUNS)
    goals = goals_section(entries)
    assert "| 91.62 | 90.87 | 0.75 ± 0.35 | 0.9 | yes | 1.13 (SynQ) | 0, 1 | 10 min |" in goals
    assert "| 5.00 | 4.5 | no, by 0.50 | 5.55 (HAST) | 0 | 10 min |" in goals
    assert goals.count("not measured") == len(accuracy.ROWS) - 2
    methods = methods_section(entries)
    assert "| causal, best | genie, best |" in methods
    assert "0.75 ± 0.35 (10.0 min) | 2.00 (10.0 min) |" in methods


def test_plots_are_written(tmp_path: Path) -> None:
    entries = accuracy.summarize(RUNS)
    draw_against_time(entries, tmp_path / "time.png")
    draw_against_bits(entries, tmp_path / "bits.png")
    assert {path.name for path in tmp_path.iterdir()} == {"time.png", "bits.png"}


def test_a_paired_test_counts_the_swaps_that_go_as_far() -> None:
    found = paired_difference([2.0, 4.0, 3.0], [1.0, 1.0, 4.0])
    assert (found.mean, found.pairs) == (pytest.approx(1.0), 3)
    assert found.spread == pytest.approx(2.0)
    # Sums of +-1 +-3 +-1: as far from 0 as 3 are +-5 and, twice each, +-3.
    assert found.p == pytest.approx(6 / 8)
    one_sided = paired_difference([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5)
    assert one_sided.p == pytest.approx(2 / 32)


def test_the_causal_section_pairs_runs_by_seed_and_wants_five() -> None:
    pairs = [run(seed, 1.0 + seed, effort="fast") for seed in range(5)]
    pairs += [run(seed, 1.5 + 1.2 * seed, WITHOUT_DISCREPANCY, "fast") for seed in range(5)]
    found = causal_section([*pairs, run(9, 50.0, effort="fast")]).splitlines()[-3]
    assert "| fast | 3.90 | 3.00 | 0.90 ± 0.32 | 5 | 0.062 |" in found
    assert causal_section(pairs[:9]).splitlines()[-1].startswith("|---")


def test_the_ablation_section_names_what_was_changed_and_leaves_the_causal_losses_to_theirs() -> None:
    runs = [run(seed, 1.0 + seed, effort="fast") for seed in range(3)]
    runs += [run(seed, 1.5 + 1.2 * seed, "causal-without-imprints", "fast") for seed in range(3)]
    runs += [run(seed, 0.5 + seed, "causal-with-swing", "fast") for seed in range(3)]
    runs += [run(seed, 9.0, WITHOUT_DISCREPANCY, "fast") for seed in range(3)]
    swing, imprints = ablation_section(runs).splitlines()[-2:]
    assert swing.startswith("| with swing |")
    assert "| fast | 2.00 | 1.50 | -0.50 ± 0.00 | 3 |" in swing
    assert "| without imprints |" in imprints
    assert "| fast | 2.00 | 2.70 | +0.70 ± 0.20 | 3 |" in imprints


def test_all_pairs_together_are_said_to_help_harm_or_neither() -> None:
    def section(saved: list[float]) -> str:
        runs = [run(seed, 3.0 - points) for seed, points in enumerate(saved)]
        runs += [run(seed, 3.0, WITHOUT_DISCREPANCY) for seed in range(len(saved))]
        return causal_section(runs).splitlines()[-1]

    assert section([0.1, -0.1, 0.2, -0.2, 0.0, 0.1]).startswith("All 6 pairs together: +0.02 ± 0.15 points, p = ")
    assert "neither help nor harm" in section([0.1, -0.1, 0.2, -0.2, 0.0, 0.1])
    assert "the causal losses help" in section([0.5, 0.4, 0.6, 0.5, 0.7, 0.4])
    assert "the causal losses harm" in section([-0.5, -0.4, -0.6, -0.5, -0.7, -0.4])


def test_the_best_rival_is_named_with_its_share_of_the_time_and_the_gap_to_real_images() -> None:
    entries = accuracy.summarize(
        [run(0, 1.0), run(0, 3.0, "genie"), {**run(0, 2.0, "synq"), "seconds": 900.0}, run(0, 0.5, accuracy.REAL)]
    )
    (line,) = rivals_section(entries).splitlines()[7:]
    assert line.endswith("| best | 1.00 | synq, of 2 | 2.00 | 1.50 | yes | 0.20 | 1, 1 |")
    without = [entry for entry in entries if entry["method"] != accuracy.REAL]
    assert rivals_section(without).splitlines()[-1].endswith("| yes |  | 1, 1 |")
    assert rivals_section(entries[:1]).splitlines()[-1].startswith("|---")


def test_a_longer_schedule_is_told_beside_best_where_it_was_run() -> None:
    entries = accuracy.summarize([run(0, 0.8), run(0, 0.6, LONG), run(0, 9.0, row=1)])
    lines = [line for line in long_section(entries).splitlines() if line.startswith("| `")]
    assert len(lines) == 1
    assert "| w4a4 gdfq | 0.80 | 0.60 | 1.13 (SynQ) | 10.0 | 0 |" in lines[0]


def test_the_gpu_is_named() -> None:
    machine = {"cores": 16, "processor": "CPU", "accelerator": "NVIDIA X"}
    origin = {"command": "python -m bench.accuracy", "machine": machine}
    runs = [{**run(0, 0.8), "threads": 1, "jobs": 4, "origin": origin}]
    results = {"runs": runs, "versions": {"torch": "2.11"}}
    page = gpu_page(results)
    assert "NVIDIA X, 16 cores of an CPU, torch 2.11" in page
    assert "A longer schedule" not in page


def test_times_of_other_processors_are_not_compared() -> None:
    other = {"command": "", "machine": {**MACHINE, "processor": "another"}}
    for origin, time in ((other, ""), (run(0, 1.0)["origin"], "0.50")):
        theirs = {**run(0, 1.0, "gdfq"), "seconds": 300.0, "origin": origin}
        assert f"| gdfq, of 1 | 1.00 | {time} |" in rivals_section(accuracy.summarize([run(0, 0.8), theirs]))


def test_balanced_is_told_as_a_share_of_the_way_and_of_the_time() -> None:
    runs = [run(0, 5.0, effort="fast"), {**run(0, 2.0, effort="balanced"), "seconds": 150.0}, run(0, 1.0)]
    assert efforts_section(accuracy.summarize(runs)).splitlines()[-1].endswith("| 5.00 | 2.00 | 1.00 | 75% | 25% |")
    assert efforts_section(accuracy.summarize(runs[1:])).splitlines()[-1].startswith("|---")
