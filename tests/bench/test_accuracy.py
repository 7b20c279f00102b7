"""The accuracy bench measures what is asked for and missing, and loses no run that it holds."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer

from bench import accuracy

Measured = list[tuple[str, str, int]]
NOW = "now"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Runs take no time, of commit `NOW`; gives their network, bits and seed in order. Seed 9 fails."""
    done: Measured = []

    def run_once(row: accuracy.Row, method: str, effort: str, seed: int, place: accuracy.Place) -> dict[str, Any]:
        done.append((row.network, row.bits, seed))
        if seed == 9:
            raise RuntimeError("no memory")
        return result(row, seed)

    def pool(jobs: int, context: object, max_tasks_per_child: int | None) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(jobs)

    # The bench sets both for its processes.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    monkeypatch.setattr(accuracy, "run_once", run_once)
    monkeypatch.setattr(accuracy, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(accuracy, "describe", lambda device: origin(NOW))
    monkeypatch.setattr(accuracy, "is_same_package", lambda found, device: found["commit"] == NOW)
    return done


def origin(commit: str) -> dict[str, Any]:
    return {"command": "python -m bench.accuracy", "commit": commit, "machine": {"processor": "CPU"}}


def result(row: accuracy.Row, seed: int, drop: float = 1.0) -> dict[str, Any]:
    return {
        "network": row.network,
        "protocol": row.protocol,
        "bits": row.bits,
        "method": "causal",
        "effort": "best",
        "seed": seed,
        "seconds": 60.0,
        "peak_memory_gb": 1.0,
        "top1": 90.0 - drop,
        "float_top1": 90.0,
        "drop": drop,
        "agreement": 95.0,
        "drop_standard_error": 0.3,
        "images": 5000,
    }


def write(path: Path, *found: tuple[int, int]) -> None:
    """A file with runs of these rows and seeds, of an earlier commit."""
    for row, seed in found:
        run = {"commit": "old", "origin": origin("old"), "jobs": 1, **result(accuracy.ROWS[row], seed, 2.0)}
        accuracy.store_run(path, origin("old"), run)


def commits(path: Path) -> dict[tuple[str, int], str]:
    return {(run["bits"], run["seed"]): run["commit"] for run in json.loads(path.read_text())["runs"]}


def test_a_second_call_measures_nothing_that_is_stored(measured: Measured, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "results.json"
    accuracy.main(only="akamaster gdfq w4a4", seeds="0", out=path)
    accuracy.main(only="akamaster gdfq w4a4", seeds="0,1", out=path)
    assert measured == [(accuracy.RESNET20, "w4a4", 0), (accuracy.RESNET20, "w4a4", 1)]
    accuracy.main(only="akamaster gdfq w4a4", seeds="0,1", again=True, out=path)
    assert len(measured) == 2
    assert commits(path) == {("w4a4", 0): NOW, ("w4a4", 1): NOW}


def test_stored_runs_of_another_package_are_kept_unless_again_asks_for_them(measured: Measured, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write(path, (0, 0), (1, 0), (0, 1))
    accuracy.main(only="akamaster gdfq w4a4", seeds="0", out=path)
    assert measured == []
    accuracy.main(only="akamaster gdfq w4a4", seeds="0", again=True, out=path)
    assert measured == [(accuracy.RESNET20, "w4a4", 0)]
    assert commits(path) == {("w4a4", 0): NOW, ("w3a3", 0): "old", ("w4a4", 1): "old"}
    rows = json.loads(path.read_text())["rows"]
    assert [(row["bits"], row["seeds"], row["drop"]) for row in rows] == [("w3a3", [0], 2.0), ("w4a4", [0, 1], 1.5)]


def test_a_run_that_fails_leaves_the_one_that_it_was_to_replace(measured: Measured, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write(path, (0, 9), (1, 0))
    with pytest.raises(typer.Exit):
        accuracy.main(only="akamaster gdfq w4a4", seeds="9,1", again=True, out=path)
    assert sorted(seed for _, _, seed in measured) == [1, 9]
    assert commits(path) == {("w4a4", 9): "old", ("w3a3", 0): "old", ("w4a4", 1): NOW}


def test_real_images_are_asked_for_where_there_are_such() -> None:
    def asked(has_real_images: bool) -> set[str]:
        found = accuracy.asked_runs("gdfq w4a4", "causal,real", "best", "0", has_real_images)
        return {f"{accuracy.ROWS[index].network} {method}" for index, method, _, _ in found}

    causal = {f"{network} causal" for network in (accuracy.RESNET20, accuracy.RESNET32)}
    assert asked(False) == causal
    assert asked(True) == {*causal, f"{accuracy.RESNET20} {accuracy.REAL}"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"methods": "causal,nonsense"}, "'nonsense' is none of causal, zeroq"),
        ({"efforts": "bast"}, "'bast' is none of fast, balanced, best"),
        ({"only": "resnet50"}, "'resnet50' is in none of"),
    ],
)
def test_what_does_not_exist_is_not_measured(asked: dict[str, str], said: str) -> None:
    options = {"only": "gdfq", "methods": "causal", "efforts": "best", "seeds": "0", **asked}
    with pytest.raises(typer.BadParameter, match=said):
        accuracy.asked_runs(**options, has_real_images=False)
