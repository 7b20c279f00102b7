"""A folder goes on with its own run alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from causal_dfq import run_folder
from causal_dfq.config import make_options
from causal_dfq.errors import OutputError
from causal_dfq.pipeline import start_run
from causal_dfq.training.budget import BUDGETS, Budget
from tests.networks import Residual, trained


class Stopped(Exception):
    """What ends a run from outside."""


def test_an_unfinished_run_with_batches_of_another_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory limit may allow other batches on another machine."""
    monkeypatch.setitem(BUDGETS, "fast", Budget(3, 1, 1, student_steps=1))
    monkeypatch.setattr(run_folder.CheckpointFile, "due", lambda self: True)
    options = make_options(bits="w4a4", effort="fast", input_shape=(3, 16, 16))

    def go_on(*, resume: bool, last: int | None) -> list[int]:
        steps: list[int] = []

        def noted(report: Any) -> None:
            steps.append(report.step)
            if report.step == last:
                raise Stopped

        source = run_folder.Source("residual", None, "")
        run_folder.quantize_to_folder(
            trained(Residual()), options, torch.device("cpu"), tmp_path / "run", source, resume, noted
        )
        return steps

    with pytest.raises(Stopped):
        go_on(resume=False, last=3)

    def with_smaller_batches(*arguments: Any) -> Any:
        run = start_run(*arguments)
        run.use_recipe(replace(run.recipe, student_contents=run.recipe.student_contents - 1))
        return run

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "start_run", with_smaller_batches)
        with pytest.raises(OutputError, match="recipe was"):
            go_on(resume=True, last=None)
    assert go_on(resume=True, last=None)[0] == 3
