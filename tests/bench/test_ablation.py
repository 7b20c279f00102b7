"""Ablations change what their names say: what Q becomes, and the images where they say so."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bench.ablation import ABLATIONS, Ablation
from causal_dfq.pipeline import train
from causal_dfq.training import budget
from causal_dfq.training.budget import Budget
from causal_dfq.training.checkpoint import run_state
from causal_dfq.training.equilibrium import Equilibrium
from tests.bench.test_shared_synthesis import started
from tests.networks import trained

SMALL = Budget(2, 1, 1, student_steps=2, imprint_batches=1, imprint_iterations=2, rounding_images=32)
NOTHING = Ablation(lambda run: None)


def strided() -> nn.Module:
    first = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    second = (nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def changed_run(ablation: Ablation, monkeypatch: pytest.MonkeyPatch) -> Equilibrium:
    monkeypatch.setitem(budget.BUDGETS, "fast", SMALL)
    run = started(trained(strided()), "w4a4", "causal")
    run.use_recipe(replace(run.recipe, pool_batch=8, reconstruction_images=32))
    ablation.change(run)
    return run


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_a_changed_run_ends_as_another_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [changed_run(ablation, monkeypatch) for ablation in (NOTHING, ABLATIONS[name])]
    for run in runs:
        losses = [value for report in train(run) for value in report.metrics.values()]
        assert torch.tensor(losses).isfinite().all()
    full, changed = (torch.cat([values.flatten() for values in run.quantized.parameters()]) for run in runs)
    assert not torch.equal(full, changed)


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_images_are_those_of_a_full_run_where_an_ablation_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [changed_run(ablation, monkeypatch) for ablation in (NOTHING, ABLATIONS[name])]
    for run in runs:
        for step in range(run.steps_before_calibration):
            run.run_step(step)
    full, changed = ({k: v for k, v in run_state(run).items() if k.startswith("generator.")} for run in runs)
    is_same = full.keys() == changed.keys() and all(torch.equal(full[name], changed[name]) for name in full)
    assert is_same is not ABLATIONS[name].alters_images
