"""This project's method beside the field's, and its efforts beside each other, from made-up runs."""

from collections.abc import Callable
from typing import Any

import pytest

from bench import accuracy
from bench.equal_time import equal_time_section
from bench.side_by_side import efforts_section, rivals_note, rivals_section, told_answers
from causal_dfq.training.budget import CAUSAL_RECIPE
from causal_dfq.training.methods import METHODS
from tests.bench.made_up_runs import MACHINE, RUNS, elsewhere, run


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


def test_the_fields_methods_have_our_learning_rates_and_synq_stands_beside_its_paper() -> None:
    rates = ("weight_lr", "bias_lr", "step_size_lr", "zero_point_lr")
    for components in METHODS.values():
        assert all(getattr(components.recipe, name) == getattr(CAUSAL_RECIPE, name) for name in rates)
    note = rivals_note(accuracy.summarize([run(0, 2.5, "synq"), run(0, 9.0, "synq", row=4)]))
    assert note.endswith(
        "loses 2.50 points on `cifar10_resnet20_akamaster` w4a4, 1.13 in its paper, from another checkpoint."
    )
    assert "synq" not in rivals_note(accuracy.summarize(RUNS))


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
