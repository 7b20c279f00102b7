"""Runs that share their images end with the same bits as runs of their own."""

from pathlib import Path

import pytest
import torch
from torch import nn

from bench.shared_synthesis import synthesize
from causal_dfq.config import make_options
from causal_dfq.pipeline import prepare, start_run, train
from causal_dfq.training import budget
from causal_dfq.training.budget import Budget
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
