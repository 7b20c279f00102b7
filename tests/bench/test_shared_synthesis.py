"""Runs that share their images end with the same bits as runs of their own."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from bench import shared_synthesis
from bench.ablation import ABLATIONS
from bench.shared_synthesis import hash_of_sources, maker_of, synthesize
from causal_dfq.config import make_options
from causal_dfq.pipeline import prepare, start_run, train
from causal_dfq.training import budget
from causal_dfq.training.budget import Budget, Recipe
from causal_dfq.training.equilibrium import Equilibrium
from tests.networks import Residual, trained

SMALL = Budget(2, 1, 1, student_steps=1, imprint_batches=2, imprint_iterations=3, rounding_images=64)


def started(network: nn.Module, bits: str, method: str) -> Equilibrium:
    options = make_options(bits=bits, effort="fast", input_shape=(3, 8, 8), method=method)
    return start_run(prepare(network, options), options, torch.device("cpu"))


@pytest.mark.parametrize("method", ["causal", "zeroq"])
def test_shared_images_give_the_bits_of_a_run_of_its_own(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(budget.BUDGETS, "fast", SMALL)
    network = trained(Residual())
    path = tmp_path / "images.safetensors"
    first = started(network, "w8a8", method)
    seconds = synthesize(first, path)
    assert seconds > 0
    second = started(network, "w3a4", method)
    assert synthesize(second, path) == seconds
    list(train(second, second.steps_before_calibration))
    alone = started(network, "w3a4", method)
    list(train(alone))
    ours, theirs = second.quantized.state_dict(), alone.quantized.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_images_that_something_else_made_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budget.BUDGETS, "fast", SMALL)
    path = tmp_path / "images.safetensors"
    run = started(trained(Residual()), "w8a8", "causal")
    # Of a maker that is not told.
    save_file({"random": torch.zeros(3)}, path, {"seconds": "1000"})
    assert synthesize(run, path) < 1000
    assert synthesize(started(trained(Residual()), "w3a4", "causal"), path) < 1000
    with safe_open(path, "pt") as file:
        assert file.metadata()["maker"] == maker_of(run)
    other = started(trained(Residual()), "w8a8", "causal")
    other.use_recipe(replace(other.recipe, statistics_weight=1.0))
    synthesize(other, path)
    with safe_open(path, "pt") as file:
        assert file.metadata()["maker"] == maker_of(other) != maker_of(run)


def test_sources_are_those_that_a_run_reaches(tmp_path: Path) -> None:
    source, beside = tmp_path / "synthesis.py", tmp_path / "export" / "file.py"
    beside.parent.mkdir()
    source.write_text("1")
    first = hash_of_sources(tmp_path)
    beside.write_text("1")
    assert hash_of_sources(tmp_path) == first
    source.write_text("2")
    assert hash_of_sources(tmp_path) != first


def test_a_maker_is_told_by_the_sources_as_they_were_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(trained(Residual()), "w8a8", "causal")
    maker = maker_of(run)
    # As if the files had changed since.
    with monkeypatch.context() as context:
        context.setattr(Path, "read_bytes", lambda path: b"")
        assert maker_of(run) == maker
    monkeypatch.setattr(shared_synthesis, "_SOURCES", "of another package")
    assert maker_of(run) != maker


def test_a_maker_has_its_processor_accelerator_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(trained(Residual()), "w8a8", "causal")
    machines = ({"processor": "CPU"}, {"processor": "another"}, {"processor": "CPU", "accelerator": "GPU"})
    makers = set()
    for machine, threads in [*((machine, 1) for machine in machines), (machines[0], 2)]:
        monkeypatch.setattr(shared_synthesis, "describe", lambda device, found=machine: {"machine": found})
        monkeypatch.setattr(torch, "get_num_threads", lambda number=threads: number)
        makers.add(maker_of(run))
    assert len(makers) == 4


def test_a_maker_is_its_network_budget_recipe_and_seed() -> None:
    run = started(trained(Residual()), "w8a8", "causal")
    makers = {maker_of(run)}
    assert makers == {maker_of(started(trained(Residual()), "w2a8", "causal"))}
    run.seed = 1
    makers.add(maker_of(run))
    run.budget = replace(run.budget, warmup_steps=1)
    makers.add(maker_of(run))
    run.recipe = replace(run.recipe, pool_batch=1)
    makers.add(maker_of(run))
    with torch.no_grad():
        next(iter(run.views.captured.state_dict().values())).add_(1)
    makers.add(maker_of(run))
    assert len(makers) == 5


@pytest.mark.parametrize("name", sorted(name for name, each in ABLATIONS.items() if not each.alters_images))
def test_ablations_that_leave_the_images_alone_share_them(name: str) -> None:
    runs = [started(trained(Residual()), "w8a8", "causal") for _ in range(2)]
    ABLATIONS[name].change(runs[1])
    assert maker_of(runs[0]) == maker_of(runs[1])


def test_what_is_left_out_of_a_maker_is_in_the_recipe() -> None:
    assert {field.name for field in fields(Recipe)} >= shared_synthesis._RECIPE_OF_STUDENT
