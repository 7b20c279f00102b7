"""The causal analysis of a run: what it gives, and that it leaves the run alone."""

import pytest
import torch

from causal_dfq.causal.analysis import content_accuracy
from causal_dfq.network.capture import capture
from causal_dfq.pipeline import train
from causal_dfq.training.analysis import PREFIX, STYLES, analyse
from causal_dfq.training.budget import Budget
from causal_dfq.training.views import attended_feature
from tests.networks import Residual, trained
from tests.training.test_equilibrium import snapshot, started

SMALL = Budget(warmup_steps=2, equilibrium_rounds=1, finish_rounds=1, student_steps=2)


def test_it_joins_the_metrics_before_and_after_the_training_of_the_quantized_network() -> None:
    reports = list(train(started(SMALL, "w8a8")))
    measured = [report.step for report in reports if PREFIX + "cka" in report.metrics]
    # Calibration follows the warm-up.
    assert measured == [SMALL.warmup_steps + 1, len(reports)]
    calibrated = reports[SMALL.warmup_steps].metrics
    assert calibrated[PREFIX + "cka"] > 0.99
    for metrics in (calibrated, reports[-1].metrics):
        for name in ("content_accuracy_pretrained", "content_accuracy_quantized", "cka", "attention_overlap"):
            assert 0 <= metrics[PREFIX + name] <= 1 + 1e-6


def test_it_draws_nothing_from_the_run_and_changes_no_parameter() -> None:
    run = started(SMALL)
    for step in range(3):
        run.run_step(step)
    state = run.random.get_state()
    before = snapshot(run.synthesis.state) + snapshot(run.quantized)
    gradients = [parameter.grad for parameter in run.quantized.parameters()]
    assert analyse(run) == analyse(run)
    assert torch.equal(run.random.get_state(), state)
    after = snapshot(run.synthesis.state) + snapshot(run.quantized)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(a is b.grad for a, b in zip(gradients, run.quantized.parameters(), strict=True))


def test_networks_that_agree_get_the_best_values() -> None:
    # At 8 bits a calibrated network differs from its parent by rounding alone.
    run = started(SMALL, "w8a8")
    for step in range(3):
        run.run_step(step)
    found = analyse(run)
    assert found[PREFIX + "cka"] == pytest.approx(1.0, abs=0.01)
    assert found[PREFIX + "attention_overlap"] > 0.95
    sensitivities = found[PREFIX + "sensitivity_pretrained"], found[PREFIX + "sensitivity_quantized"]
    assert sensitivities[0] == pytest.approx(sensitivities[1], rel=0.1, abs=1e-3)


def test_its_content_accuracy_is_that_of_the_pretrained_network_on_the_same_images() -> None:
    run = started(SMALL)
    for step in range(3):
        run.run_step(step)
    random = torch.Generator().manual_seed(run.seed)
    content = run.synthesis.model.sample("content", max(4, run.recipe.student_images // STYLES), random)
    style = run.synthesis.model.sample("style", STYLES * len(content), random)
    with torch.no_grad(), run.views.autocast():
        images = run.synthesis.generator(content.repeat(STYLES), style)
        logits = run.views.pretrained_logits(images).unflatten(0, (STYLES, -1))
    expected = content_accuracy(logits, content.labels).item()
    assert analyse(run)[PREFIX + "content_accuracy_pretrained"] == pytest.approx(expected, abs=0.02)


def test_grad_cam_looks_at_the_last_map_with_several_places() -> None:
    folded = capture(trained(Residual()), (3, 8, 8))
    name = attended_feature(folded)
    node = next(node for node in folded.graph.nodes if node.name == name)
    assert node.meta["val"].shape[2] > 1
    later = list(folded.graph.nodes)[list(folded.graph.nodes).index(node) + 1 :]
    assert not any(n.op == "call_function" and "relu" in n.name for n in later)
