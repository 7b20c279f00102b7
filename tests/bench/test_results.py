"""The accuracy bench's summary and page, from made-up runs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import accuracy
from bench.ablation import ABLATIONS, LONG, WITHOUT_DISCREPANCY
from bench.causal_section import ablation_section, causal_section, causal_share
from bench.equal_time import equal_time_section
from bench.long_schedule import long_section
from bench.origin_tables import origin_section
from bench.paired_test import paired_difference
from bench.side_by_side import efforts_section, rivals_note, rivals_section, told_answers
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
from causal_dfq.training.methods import METHODS

MACHINE = {"cores": 2, "processor": "CPU"}
COMMAND = "python -m bench.accuracy --only 'akamaster gdfq w4a4' --seeds 0"


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
        "agreement": 98.0 - drop,
        "drop_standard_error": 0.3,
        "images": 5000,
        "threads": 1,
        "jobs": 1,
        "last_metrics": {"analysis_cka": 0.9 - drop / 100},
        "origin": {"command": COMMAND, "machine": MACHINE, "versions": {"torch": "2.9"}},
        "commit": "abcdef0123",
    }


RUNS = [{**run(1, 1.0), "seconds": 720.0}, {**run(0, 0.5), "seconds": 480.0}, run(0, 2.0, "genie"), run(0, 5.0, row=1)]


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


def test_the_best_rival_is_named_with_its_share_of_the_time_and_the_gap_to_real_images() -> None:
    runs = [run(0, 1.0), run(0, 3.0, "genie"), {**run(0, 2.0, "synq"), "seconds": 900.0}, run(0, 0.5, accuracy.REAL)]
    line = rivals_section(runs).splitlines()[-1]
    assert line.endswith("| best | 1.00 | synq, of 2 | 2.00 | 97.00, 96.00 | yes | 1.50 | 0.20 | 0 |")
    assert rivals_section(runs[:3]).splitlines()[-1].endswith("| yes | 1.50 |  | 0 |")
    assert rivals_section(runs[:1]).splitlines()[-1].startswith("|---")


def test_a_gap_is_blank_without_common_seeds_and_where_genie_is_not_above_real_images() -> None:
    def gap(*runs: dict[str, Any]) -> str:
        return rivals_section(list(runs)).splitlines()[-1].split(" | ")[-2].strip()

    assert gap(run(0, 1.0), run(1, 1.0), run(1, 3.0, "genie"), run(1, 0.5, accuracy.REAL)) == "0.20"
    both = [run(seed, 3.0, "genie") for seed in (0, 1)]
    assert gap(run(0, 9.0), run(1, 1.0), *both, run(1, 0.5, accuracy.REAL)) == "0.20 (seed 1)"
    assert gap(run(0, 1.0), run(0, 3.0, "genie"), run(1, 0.5, accuracy.REAL)) == ""
    assert gap(run(0, 1.0), run(0, 3.0, "genie"), run(0, 3.0, accuracy.REAL)) == ""
    said = " ".join(rivals_section([]).split())
    assert "blank where one was not run, where they share no seed, and where GENIE's drop is not above that" in said


def test_methods_are_compared_on_common_seeds_and_beyond_noise() -> None:
    def line(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
        return rivals_section([*ours, *theirs]).splitlines()[-1]

    ours = [run(0, 1.0), run(1, 1.2)]
    assert line(ours, [run(1, 2.0, "gdfq")]).endswith("| 1.20 | gdfq, of 1 | 2.00 | 96.80, 96.00 | yes | 1.00 |  | 1 |")
    # 0.2 points are less than the images' error of 0.3.
    assert "| yes, within noise |" in line(ours, [run(1, 1.4, "gdfq")])
    # 0.6 points are more than that, and less than what our seeds differ by.
    assert "| yes, within noise |" in line([run(0, 3.0), run(1, 1.4)], [run(1, 2.0, "gdfq")])
    assert "| no |" in line(ours, [run(1, 1.2, "gdfq")])
    assert "| no, within noise |" in line(ours, [run(1, 1.0, "gdfq")])
    assert "| no |" in line(ours, [run(1, 0.8, "gdfq")])
    apart = line(ours, [run(2, 2.0, "gdfq")])
    assert "| 1.10 ± 0.14 | gdfq, of 1 | 2.00 |" in apart
    assert apart.endswith("| ours 0, 1; theirs 2 |")


def test_ours_in_no_more_time_is_the_highest_effort_that_was_so_short() -> None:
    def timed(seconds: float, *of: Any, effort: str = "best", **more: Any) -> dict[str, Any]:
        return {**run(*of, effort=effort, **more), "seconds": seconds}

    ours = [timed(60.0, 0, 5.0, effort="fast"), timed(300.0, 0, 2.0, effort="balanced"), timed(600.0, 0, 1.0)]
    table = {
        line.split(" | ")[2]: line
        for line in equal_time_section(
            [*ours, timed(600.0, 0, 3.0, "gdfq"), timed(599.0, 0, 1.0, "genie"), timed(59.0, 0, 9.0, "synq")]
        ).splitlines()
        if line.startswith("| `")
    }
    assert table["gdfq"].endswith("| gdfq | 3.00 | 10.0 | best | 1.00 | 10.0 | yes | 0 |")
    assert table["genie"].endswith("| genie | 1.00 | 10.0 | balanced | 2.00 | 5.0 | no | 0 |")
    # Of the third nothing of ours took so little time, and real images are no method of the field.
    assert table.keys() == {"gdfq", "genie"}
    assert equal_time_section([*ours, timed(700.0, 0, 0.1, accuracy.REAL)]) == ""
    # Another load, or another seed, does not compare: `balanced` does.
    others = [*ours[:2], elsewhere(ours[2]), timed(100.0, 1, 1.0), timed(700.0, 0, 3.0, "gdfq")]
    assert "| balanced | 2.00 | 5.0 | yes | 0 |" in equal_time_section(others)


def test_comparisons_are_counted() -> None:
    told = told_answers(["yes", "yes, within noise", "no", "yes"])
    assert told.startswith("Comparisons: 4; ours loses less in 3, within noise in 1 of these; ")
    assert told.endswith("; it does not in 1, within noise in 0 of these.")


def test_a_single_core_is_explained() -> None:
    alone = {**run(0, 0.8)["origin"], "machine": {**MACHINE, "cores": 1}}
    assert "`taskset` held the command" in origin_section({"runs": [{**run(0, 0.8), "origin": alone}]})
    assert "taskset" not in origin_section({"runs": [run(0, 0.8)]})


def test_the_fields_methods_have_our_learning_rates_and_synq_stands_beside_its_paper() -> None:
    rates = ("weight_lr", "bias_lr", "step_size_lr", "zero_point_lr")
    for components in METHODS.values():
        assert all(getattr(components.recipe, name) == getattr(CAUSAL_RECIPE, name) for name in rates)
    note = rivals_note(accuracy.summarize([run(0, 2.5, "synq"), run(0, 9.0, "synq", row=4)]))
    assert note.endswith(
        "loses 2.50 points on `cifar10_resnet20_akamaster` w4a4, 1.13 in its paper, from another checkpoint."
    )
    assert "synq" not in rivals_note(accuracy.summarize(RUNS))


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


def elsewhere(found: dict[str, Any]) -> dict[str, Any]:
    """The run on another processor."""
    return {**found, "origin": {**found["origin"], "machine": {**MACHINE, "processor": "another"}}}


def accelerated(found: dict[str, Any]) -> dict[str, Any]:
    """The run with an accelerator beside the same processor."""
    return {**found, "origin": {**found["origin"], "machine": {**MACHINE, "accelerator": "GPU"}}}


def with_threads(found: dict[str, Any]) -> dict[str, Any]:
    """The run on two threads."""
    return {**found, "threads": 2}


def beside_another(found: dict[str, Any]) -> dict[str, Any]:
    """The run with another one beside it."""
    return {**found, "jobs": 2}


LOADS = [elsewhere, accelerated, with_threads, beside_another]


@pytest.mark.parametrize("load", LOADS)
def test_times_under_other_loads_are_not_compared(load: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    theirs = {**run(0, 2.0, "gdfq"), "seconds": 300.0}
    assert "| yes | 0.50 |" in rivals_section([run(0, 0.8), theirs])
    assert "| yes | 0.50 |" in rivals_section([load(run(0, 0.8)), load(theirs)])
    assert "| yes |  |" in rivals_section([run(0, 0.8), load(theirs)])
    # Of two seeds of ours one had another load, which counts where it is compared.
    ours = [run(0, 0.8), load({**run(1, 0.8), "seconds": 60.0})]
    assert "| yes | 0.50 |" in rivals_section([*ours, theirs])
    assert "| yes |  |" in rivals_section([*ours, theirs, run(1, 2.0, "gdfq")])
    efforts = [run(0, 5.0, effort="fast"), {**run(0, 2.0, effort="balanced"), "seconds": 150.0}, run(0, 1.0)]
    assert efforts_section(efforts).endswith("| 100% | 75% | 25% | 0 |")
    assert efforts_section([*efforts[:2], load(efforts[2])]).endswith("|  | 75% |  | 0 |")
    # Of two seeds of `best` that of another load does not count in the time.
    assert efforts_section([*efforts, load({**run(1, 1.0), "seconds": 10.0})]).endswith("| 100% | 75% | 25% | 0 |")
    # The load of all efforts counts, also where two of them have more runs under another one.
    many = [*efforts, load({**run(1, 1.0), "seconds": 300.0}), load({**efforts[1], "seed": 1}), load(run(2, 1.0))]
    assert efforts_section(many).endswith("| 100% | 75% | 25% | 0 |")
    # Where no load is that of all, `balanced` beside `best` counts, and `fast` has no time.
    assert efforts_section([load(efforts[0]), *efforts[1:], load(run(1, 1.0))]).endswith("|  | 75% | 25% | 0 |")


def test_the_tables_say_where_times_are_blank() -> None:
    said = "the same processor, accelerator, threads and number of runs side by side"
    efforts = efforts_section([run(0, 5.0, effort="fast"), run(0, 1.0)])
    assert all(said in " ".join(section.split()) for section in (rivals_section([]), efforts))


def test_balanced_is_told_as_a_share_of_the_way_and_of_the_time() -> None:
    runs = [run(0, 5.0, effort="fast"), {**run(0, 2.0, effort="balanced"), "seconds": 150.0}, run(0, 1.0)]

    assert efforts_section(runs).endswith("| 5.00 | 2.00 | 1.00 | 100% | 75% | 25% | 0 |")
    # On the seeds that all have.
    assert efforts_section([*runs, run(1, 9.0, effort="fast")]).endswith(
        "| 5.00 | 2.00 | 1.00 | 100% | 75% | 25% | 0 |"
    )
    assert "That is missed (rows that can tell: 1; of these reach it: 0)." in efforts_section(runs)
    # Without `fast` the time still tells, and without `balanced` nothing does.
    assert efforts_section(runs[1:]).endswith("|  | 2.00 | 1.00 |  |  | 25% | 0 |")
    assert "That is missed" in efforts_section(runs[1:])
    assert efforts_section([runs[0], runs[2]]).endswith("| 5.00 |  | 1.00 | 100% |  |  | 0 |")
    assert "was not measured" in efforts_section([runs[0], runs[2]])
    near = {**run(0, 1.5, effort="balanced"), "seconds": 100.0}
    assert "That is reached (rows that can tell: 1; of these reach it: 1)." in efforts_section([runs[0], near, runs[2]])
    assert efforts_section([runs[0], elsewhere(near), runs[2]]).endswith("| 100% | 88% |  | 0 |")
    # What `best` saves is not above the paired standard error of the images.
    alike = [run(0, 1.0 + runs[2]["drop_standard_error"] - 0.01, effort="fast"), *runs[1:]]
    assert efforts_section(alike).endswith("| 2.00 | 1.00 | 100% |  | 25% | 0 |")
    assert efforts_section(runs[:1]) == "## Efforts\n\nNot measured."
