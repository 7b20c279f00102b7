"""Which results count as measured with the package as it stands."""

import os
from pathlib import Path

import pytest

from bench import environment
from bench.environment import describe, is_same_package, usable_cores


def test_other_commits_are_another_package_where_git_knows_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setenv("SOURCE_COMMIT", "0" * 40)
    here = describe()
    assert is_same_package(here)
    assert not is_same_package({**here, "commit": "1" * 40})
    monkeypatch.delenv("SOURCE_COMMIT")
    assert not is_same_package(describe())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a system that holds no process on a core")
def test_cores_are_those_that_the_process_is_held_on() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
        assert describe()["machine"]["cores"] == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cores() == len(before)


def test_commits_with_the_same_package_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {"one:src": "tree", "two:src": "tree", "three:src": "other"}
    monkeypatch.setattr(environment, "_git", lambda *arguments: sources.get(arguments[-1], "unknown"))
    monkeypatch.setenv("SOURCE_COMMIT", "one")
    results = describe()
    assert [is_same_package({**results, "commit": commit}) for commit in ("two", "three", "four")] == [
        True,
        False,
        False,
    ]
