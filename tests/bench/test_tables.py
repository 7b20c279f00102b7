"""Numbers go from results files into pages without hands."""

import json
from pathlib import Path

import pytest

from bench import environment
from bench.main_job import CASES, kept_runs, summarize
from bench.write_tables import main_job_table, replace_between


def run(index: int, seed: int, drop: float) -> dict[str, object]:
    figures = {"drop": drop, "top1": 90 - drop, "float_top1": 90.0, "drop_standard_error": 0.2, "images": 4000}
    case = CASES[index]
    return {**vars(case), "seed": seed, "seconds": 10.0 + seed, "peak_memory_gb": 1.5, "evaluation": figures}


def test_summary_is_mean_and_sample_deviation_over_seeds() -> None:
    (row,) = summarize([run(1, 0, 1.0), run(1, 1, 2.0), run(1, 2, 3.0)])
    assert row["drop"] == pytest.approx(2.0)
    assert row["drop_spread"] == pytest.approx(1.0)
    assert row["worst_drop"] == 3.0
    assert row["longest"] == 12.0


def results(*runs: dict[str, object]) -> dict[str, object]:
    return {
        "rows": summarize(list(runs)),
        "machine": {"cores": 2, "processor": "Abacus"},
        "versions": {"torch": "2.9"},
        "commit": "0123456789abcdef",
        "command": "python -m bench.main_job",
    }


def test_table_holds_the_figures_and_their_origin() -> None:
    table = main_job_table(results(run(0, 0, 0.125), run(0, 1, 0.125)))
    assert "| 90.00 | 89.88 | 0.12 ± 0.00 | 0, 1 | 10 s | 1.5 GB |" in table
    assert "4,000 development images" in table
    assert "0123456789" in table


def test_parts_of_a_table_name_their_commits_and_the_command_of_all() -> None:
    found = results({**run(0, 0, 0.125), "commit": "bbb"}, {**run(0, 1, 0.125), "commit": "aaa"})
    found |= {"command": "python -m bench.main_job --only w8a8", "runs": [{"commit": "bbb"}, {"commit": "aaa"}]}
    assert "commits aaa, bbb: `python -m bench.main_job`." in main_job_table(found)


def test_each_row_names_its_seeds_and_one_seed_has_no_spread() -> None:
    table = main_job_table(results(run(0, 3, 0.125), run(1, 3, 1.0), run(1, 4, 2.0)))
    assert "| 0.12 | 3 | 13 s |" in table
    assert "| 1.50 ± 0.71 | 3, 4 | 14 s |" in table


def test_only_the_marked_part_of_a_page_changes() -> None:
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb"
    assert replace_between(page, "x", "new") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"
    with pytest.raises(ValueError, match="substring not found"):
        replace_between(page, "y", "new")


def test_runs_of_the_same_package_are_kept_and_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"is_clean": True, "versions": {"torch": "2.9"}, "machine": {"cores": 2}, "commit": "HEAD"}
    monkeypatch.setattr(environment, "describe", lambda device: here)
    monkeypatch.setattr(environment, "_git", lambda *arguments: arguments[1].replace("HEAD", "0123"))
    path = tmp_path / "results.json"

    def kept(**changes: object) -> list[object]:
        path.write_text(json.dumps({**here, "commit": "0123", "runs": [run(0, 0, 1.0)], **changes}))
        return [(entry["commit"], entry["seed"]) for entry in kept_runs(path)]

    assert kept_runs(path) == []
    assert kept() == [("0123", 0)]
    assert kept(commit="4567") == []
    assert kept(is_clean=False) == []
    assert kept(versions={"torch": "2.10"}) == []
