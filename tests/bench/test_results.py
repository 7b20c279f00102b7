"""The accuracy bench's summary and page, from made-up runs."""

import math
from pathlib import Path
from typing import Any

import pytest

from bench import accuracy
from bench.ablation import ABLATIONS, LONG, WITHOUT_DISCREPANCY
from bench.causal_section import ablation_section, causal_section, causal_share
from bench.long_schedule import long_section
from bench.origin_tables import origin_section
from bench.paired_test import paired_difference
from bench.write_results import (
    attempts_section,
    draw_against_bits,
    draw_against_time,
    goals_section,
    gpu_page,
    methods_section,
    results_page,
)
from causal_dfq.training.budget import CAUSAL_RECIPE
from tests.bench.made_up_runs import COMMAND, MACHINE, RUNS, elsewhere, run


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
    assert (
        "| 91.62 | 90.87 | 0.75 ± 0.35 | 0.30 | 0.9 | yes | 1.13 (SynQ) | 0, 1 | abcdef0 | 12 min | 30 min |" in goals
    )
    assert "| 5.00 | 0.30 | 4.5 | no, by 0.50 | 5.55 (HAST) | 0 | abcdef0 | 10 min | 30 min |" in goals
    assert "`efficientnet-lite0`¹ |" in goals
    assert "`cifar10_resnet20_akamaster` |" in goals
    assert "\n¹ Images of more than 64x64 pixels: no generator" in goals
    assert goals.count("not measured") == len(accuracy.ROWS) - 2
    methods = methods_section(entries)
    assert "| causal, best | genie, best |" in methods
    assert "0.75 ± 0.35 (2 seeds, 10.0 min) | 2.00 (10.0 min) |" in methods
    assert "letter" not in methods


def test_commits_of_a_row_come_in_the_order_of_its_seeds() -> None:
    runs = [{**run(1, 1.0), "commit": "1" * 40}, {**run(0, 1.0), "commit": "9" * 40}]
    assert "| 0, 1 | 9999999, 1111111 |" in goals_section(accuracy.summarize(runs))


def test_minutes_name_their_processor_where_there_are_several() -> None:
    methods = methods_section(accuracy.summarize([run(0, 1.0), elsewhere(run(0, 2.0, "genie"))]))
    assert "(a: CPU, b: another)" in methods
    assert "| 1.00 (10.0 min a) | 2.00 (10.0 min b) |" in methods


def test_the_page_ties_runs_to_their_commands_and_names_what_commands_left_out() -> None:
    asked = {"command": f"{COMMAND} --methods causal,genie", "machine": MACHINE, "versions": {"torch": "2.9"}}
    page = results_page({"runs": [run(1, 1.0), run(2, 1.0), {**run(0, 0.5), "origin": asked}]})
    assert f"\n1. `{COMMAND}`\n2. `{COMMAND} --methods causal,genie`\n" in page
    assert "| w4a4 gdfq | causal | best | 0 | abcdef0 | CPU | 1 | 2 |" in page
    assert "| w4a4 gdfq | causal | best | 1, 2 | abcdef0 | CPU | 1 | 1 |" in page
    assert "not measured: `cifar10_resnet20_akamaster` w4a4 gdfq, best, seed 0: genie.\n" in page
    assert "`python -m bench.write_results` writes this page" in page
    assert "Named by a command" not in origin_section({"runs": [run(0, 1.0)]})


def real_note(*runs: dict[str, Any]) -> str:
    return attempts_section(list(runs)).splitlines()[-1]


def test_real_images_are_said_to_explain_no_more_than_they_do() -> None:
    note = real_note(run(0, 1.5), run(0, 0.5, accuracy.REAL), run(0, 4.0, row=1))
    assert "one seed a row, meets 1 of the 1 goals that it was measured for." in note
    # The errors of both runs, 0.3 each, together.
    assert "on the seeds that both have: +1.00 on w4a4 (seed 0; error at most 0.42)." in note
    assert "training images (`real`" not in attempts_section([run(0, 1.5)])
    assert real_note(run(0, 0.6), run(0, 0.5, accuracy.REAL)).endswith("goals that it was measured for.")


def test_ours_and_real_images_are_paired_by_seeds() -> None:
    ours = [run(0, 1.5), run(1, 4.0), run(2, 2.5)]
    assert "both have: +1.00 on w4a4 (seed 0;" in real_note(*ours, run(0, 0.5, accuracy.REAL))
    both = real_note(*ours, run(0, 0.5, accuracy.REAL), run(2, 1.0, accuracy.REAL), run(3, 9.0, accuracy.REAL))
    assert "both have: +1.25 on w4a4 (seeds 0, 2;" in both
    assert "our drop less" not in real_note(*ours, run(3, 0.5, accuracy.REAL))


def test_a_drop_below_that_on_real_images_is_not_said_to_lie_above() -> None:
    note = real_note(run(0, 1.5), run(0, 2.0, accuracy.REAL))
    assert "our drop less that of `real`, on the seeds that both have: -0.50 on w4a4" in note
    assert "above it by" not in note


def test_uneven_numbers_of_seeds_on_real_images_are_told() -> None:
    first = [run(0, 0.5, accuracy.REAL), run(1, 0.5, accuracy.REAL)]
    assert ", 2 seeds a row, meets 1 of the 1 goals" in real_note(*first)
    assert ", 1 to 2 seeds a row, meets 2 of the 2 goals" in real_note(*first, run(0, 1.0, accuracy.REAL, row=1))


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
    found = causal_section([*pairs, run(9, 50.0, effort="fast")])
    assert "| fast | 3.90 | 3.00 | 0.90 ± 0.32 | 5 | 0.062 |" in found
    assert "With 5 pairs the smallest p that this test can give is 0.0625: no row by itself can" in found
    assert found.endswith("| CKA of P and Q | 0.8610, 0.8700 | +0.0090 ± 0.0032 | 0.062 |")
    assert "This holds for effort fast, and for both losses together." in found
    assert causal_section(pairs[:9]).endswith("\n\nNot measured.")


def test_what_the_causal_losses_see_is_counted_in_a_batch() -> None:
    share = causal_share()
    assert share.images == CAUSAL_RECIPE.student_images
    assert (share.shown, share.styles) == (CAUSAL_RECIPE.student_contents, CAUSAL_RECIPE.styles)
    # A share `imprinted` of the contents is not generated.
    assert share.generated == pytest.approx((1 - CAUSAL_RECIPE.imprinted) * share.shown, abs=1)
    said = f"{share.styles * share.generated} of its {share.images} images"
    assert said in causal_section([run(s, s, m) for s in range(5) for m in ("causal", WITHOUT_DISCREPANCY)])


def test_the_ablation_section_names_what_was_changed_and_leaves_the_causal_losses_to_theirs() -> None:
    runs = [run(seed, 1.0 + seed, effort="fast") for seed in range(3)]
    runs += [run(seed, 1.5 + 1.2 * seed, "causal-without-imprints", "fast") for seed in range(3)]
    runs += [run(seed, 0.5 + seed, "causal-with-swing", "fast") for seed in range(1)]
    runs += [run(seed, 9.0, WITHOUT_DISCREPANCY, "fast") for seed in range(3)]
    table, missing, kept = ablation_section(runs).rsplit("\n\n", 2)
    swing, imprints = table.splitlines()[-2:]
    assert kept.startswith("What is kept and why")
    assert swing.startswith("| with swing |")
    assert "| fast | 1.00 | 0.50 | -0.50 | +0.50 | 0 |" in swing
    assert "| without imprints |" in imprints
    assert "| fast | 2.00 | 2.70 | +0.70 ± 0.20 | -0.70 ± 0.20 | 0, 1, 2 |" in imprints
    assert missing.startswith("Not measured: with low pass, with reconstruction, without blends, ")
    nothing = ablation_section(RUNS).splitlines()[-1]
    assert nothing.count(",") == len(ABLATIONS.keys() - {LONG, WITHOUT_DISCREPANCY}) - 1


def test_all_pairs_together_are_said_to_help_harm_or_neither() -> None:
    def section(saved: list[float]) -> str:
        runs = [run(seed, 3.0 - points) for seed, points in enumerate(saved)]
        runs += [run(seed, 3.0, WITHOUT_DISCREPANCY) for seed in range(len(saved))]
        return next(line for line in causal_section(runs).splitlines() if "pairs together: " in line)

    assert section([0.1, -0.1, 0.2, -0.2, 0.0, 0.1]).startswith(
        "With 6 pairs the smallest p that this test can give is 0.03125. "
        "All 6 pairs together: +0.02 ± 0.15 points, p = "
    )
    assert "neither help nor harm" in section([0.1, -0.1, 0.2, -0.2, 0.0, 0.1])
    assert "the causal losses help" in section([0.5, 0.4, 0.6, 0.5, 0.7, 0.4])
    assert "the causal losses harm" in section([-0.5, -0.4, -0.6, -0.5, -0.7, -0.4])


def test_a_single_core_is_explained() -> None:
    alone = {**run(0, 0.8)["origin"], "machine": {**MACHINE, "cores": 1}}
    assert "`taskset` held the command" in origin_section({"runs": [{**run(0, 0.8), "origin": alone}]})
    assert "taskset" not in origin_section({"runs": [run(0, 0.8)]})


def test_a_longer_schedule_is_told_beside_best_where_it_was_run() -> None:
    entries = accuracy.summarize([run(0, 0.8), run(0, 0.6, LONG), run(0, 9.0, row=1)])
    section = long_section(entries)
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    assert len(lines) == 1
    assert "| w4a4 gdfq | 0.9 | 0.80 | 0.60 | 97.20 | 97.40 | 1.13 (SynQ) | 10.0 | 0 |" in lines[0]
    # 75 and 360 rounds of 6 steps, of 8 times 64 images.
    assert "2,610 steps of 512 images" in section


def test_rows_that_miss_say_what_a_longer_schedule_gives() -> None:
    missing = [run(0, 1.5), run(0, 0.05, row=2)]
    on_gpu = [run(0, 0.6, LONG), run(1, 0.8, LONG), run(0, 0.02, LONG, row=2)]
    section = attempts_section(missing, on_gpu)
    assert "the drop is 0.70 ± 0.14 on `cifar10_resnet20_akamaster` w4a4 (goal 0.9; seeds 0, 1)." in section
    both = attempts_section([*missing, run(1, 2.5)], on_gpu)
    assert "(goal 0.9; seeds 0, 1; `best`: 2.00)." in both
    # A row that nothing is written of yet.
    assert "\n- `cifar10_resnet20_akamaster` w4a4: nothing.\n" in section
    assert "\n- ResNet-20 w5a5: " in attempts_section([run(0, 1.5, row=2)])
    assert "a GPU" not in attempts_section(missing, on_gpu[2:])
    assert "a GPU" not in attempts_section(missing)


def test_the_gpu_is_named() -> None:
    machine = {"cores": 16, "processor": "CPU", "accelerator": "NVIDIA X"}
    origin = {"command": COMMAND, "machine": machine, "versions": {"torch": "2.11"}}
    page = gpu_page({"runs": [{**run(0, 0.8), "origin": origin}]})
    assert "NVIDIA X, 16 cores of an CPU; torch 2.11" in page
    assert "| abcdef0 | NVIDIA X | 1 | 1 |" in page
    assert "A longer schedule" not in page
    assert "Beside the field's methods" not in page
