"""On a GPU: every method runs there, and gives networks that compute the same on the CPU."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import causal_dfq
from causal_dfq import fusion as fusion_module
from causal_dfq.config import Method, make_options
from causal_dfq.data.labelled import Preprocessing, open_labelled
from causal_dfq.evaluation import evaluate_pair
from causal_dfq.fusion import can_compile, fusion
from causal_dfq.pipeline import prepare, start_run, train
from causal_dfq.precision import float32_convolutions
from causal_dfq.quantizer.affine import learned_fake_quantize
from causal_dfq.synthesis.imprint import scenes_within
from causal_dfq.synthesis.pixel_space import PixelSpace
from causal_dfq.training import budget
from causal_dfq.training.budget import Budget
from causal_dfq.training.checkpoint import restore_state, run_state
from causal_dfq.training.methods import METHODS
from tests.networks import ALL, Residual, trained

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

SMALL = Budget(2, 2, 2, student_steps=1, imprint_batches=1, imprint_iterations=3, rounding_images=128)
SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budget.BUDGETS, "fast", SMALL)
    for method in ("zeroq", "genie"):
        budgets = METHODS[method].budgets  # type: ignore[index]
        iterations = min(4, budgets["fast"].reconstruction_iterations)
        of_pool = replace(budgets["fast"], warmup_steps=8, reconstruction_iterations=iterations)
        monkeypatch.setitem(budgets, "fast", of_pool)  # type: ignore[arg-type]


class Positions(Residual):
    """What it adds is made anew for each batch, on the CPU if nothing is done about it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.float() + torch.arange(8.0).sin())


def images(count: int = 64) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))


def quantize(network: nn.Module, bits: str = "w4a4", **more: object) -> causal_dfq.QuantizedNetwork:
    return causal_dfq.quantize(network, bits, SHAPE, effort="fast", device="cuda", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("network", [*ALL, Positions], ids=lambda network: network.__name__)
@pytest.mark.parametrize("protocol", ["deploy", "gdfq", "genie"])
def test_what_was_quantized_there_computes_the_same_here(network: type[nn.Module], protocol: str) -> None:
    quantized = quantize(trained(network()), protocol=protocol)
    assert {tensor.device.type for tensor in quantized.state_dict().values()} == {"cpu"}
    here = quantized(images())
    assert here.isfinite().all()
    with float32_convolutions():
        there = copy.deepcopy(quantized).cuda()(images().cuda()).cpu()
    # A value near the middle between two codes may fall to the other one.
    is_near = ((here - there).abs() <= 1e-4 * here.abs().max()).all(1)
    assert is_near.float().mean() > 0.9


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_runs_there(method: Method) -> None:
    network = trained(Residual())
    quantized = quantize(network, "w8a8", method=method, protocol="gdfq")
    agreement = (quantized(images()).argmax(1) == network(images()).argmax(1)).float().mean()
    assert agreement > 0.9


def test_bits_can_be_chosen_there() -> None:
    quantized = quantize(trained(Residual()), "auto", size_budget="0.6")
    assert quantized(images()).isfinite().all()


def test_a_run_goes_on_from_its_state() -> None:
    options = make_options(bits="w4a4", input_shape=SHAPE, effort="fast")
    prepared = prepare(trained(Residual()), options)
    run = start_run(prepared, options, torch.device("cuda"))
    halfway = run.total_steps // 2
    reports = train(run)
    for _ in range(halfway):
        next(reports)
    state = {name: value.detach().cpu().clone() for name, value in run_state(run).items()}
    again = start_run(prepare(trained(Residual()), options), options, torch.device("cuda"))
    restore_state(again, state)
    for report in train(again, halfway):
        assert torch.tensor(list(report.metrics.values())).isfinite().all()


@pytest.mark.parametrize("is_fused", [False, True])
def test_fake_quantization_is_its_formula(is_fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_module, "SMALLEST_COMPILED", 0)
    device = torch.device("cuda")
    if is_fused and not can_compile(device):
        pytest.skip("torch.compile finds no compiler here")
    values = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale, zero_point = torch.tensor(0.11), torch.tensor(3.0)
    with fusion(device) if is_fused else torch.enable_grad():
        given = [value.float().to(device).requires_grad_() for value in (values, scale, zero_point)]
        found = learned_fake_quantize(*given, 0, 15)
        found.sum().backward()
    codes = torch.clamp(torch.round(values / scale.double()) + 3, 0, 15)
    torch.testing.assert_close(found.detach().cpu().double(), (codes - 3) * scale.double(), rtol=1e-5, atol=1e-6)
    steps = torch.round(values / scale.double())
    inside = (steps + 3 >= 0) & (steps + 3 <= 15)
    to_scale = torch.where(inside, steps - values / scale.double(), torch.where(steps + 3 < 0, -3.0, 12.0)).sum()
    expected = (inside.double(), to_scale, -scale.double() * (~inside).sum())
    for value, gradient in zip(given, expected, strict=True):
        assert value.grad is not None
        torch.testing.assert_close(value.grad.cpu().double(), gradient, rtol=1e-4, atol=1e-5)


def test_scenes_drawn_there_are_like_those_drawn_here() -> None:
    space = PixelSpace(((-1.0,) * 3, (1.0,) * 3), 3).cuda()
    there = scenes_within(400, (3, 32, 32), space, torch.Generator().manual_seed(0))
    assert there.device.type == "cuda"
    assert torch.equal(there, scenes_within(400, (3, 32, 32), space, torch.Generator().manual_seed(0)))
    here = scenes_within(400, (3, 32, 32), space.cpu(), torch.Generator().manual_seed(0))
    assert float(there.mean()) == pytest.approx(float(here.mean()), abs=0.1)
    assert float(there.std()) == pytest.approx(float(here.std()), rel=0.1)
    near_here, near_there = ((each[..., 1:] - each[..., :-1]).square().mean() for each in (here, there))
    assert float(near_there) == pytest.approx(float(near_here), rel=0.2)


def test_accuracy_is_the_same_on_both(tmp_path: Path) -> None:
    shown = torch.randint(0, 256, (50, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    numpy.savez(tmp_path / "images.npz", images=shown.numpy(), labels=numpy.arange(50) % 5)
    quantized = quantize(trained(Residual()), "w8a8")
    labelled = open_labelled(tmp_path / "images.npz", Preprocessing(SHAPE, (0.5,) * 3, (0.5,) * 3))
    here, there = (
        evaluate_pair(copy.deepcopy(quantized), copy.deepcopy(quantized.reference), labelled, torch.device(name))
        for name in ("cpu", "cuda")
    )
    assert here.float_top1 == pytest.approx(there.float_top1, abs=2)
    assert here.top1 == pytest.approx(there.top1, abs=4)
