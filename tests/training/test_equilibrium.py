"""The alternation: its phases, what each step trains, and that its quantities move as they should."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from causal_dfq.config import Protocol, make_options
from causal_dfq.pipeline import prepare, resolve_device
from causal_dfq.quantizer.modules import ActivationQuantizer, WeightQuantizer
from causal_dfq.training import equilibrium
from causal_dfq.training.budget import BUDGETS, Budget, Recipe
from causal_dfq.training.equilibrium import Equilibrium
from causal_dfq.training.methods import METHODS
from causal_dfq.training.student_loss import StudentBatch
from causal_dfq.training.views import NetworkViews
from tests.networks import Residual, trained

BOUNDS = ((-2.0,) * 3, (2.0,) * 3)


def started(
    budget: Budget, bits: str = "w4a4", recipe: Recipe | None = None, protocol: Protocol = "deploy"
) -> Equilibrium:
    options = make_options(bits=bits, input_shape=(3, 8, 8), protocol=protocol)
    prepared = prepare(trained(Residual()), options)
    views = NetworkViews(prepared.captured, prepared.folded, prepared.quantized)
    return Equilibrium(views, (3, 8, 8), BOUNDS, budget, recipe or Recipe(), 0, resolve_device("cpu"))


def snapshot(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(module: torch.nn.Module, before: list[torch.Tensor]) -> bool:
    return any(not torch.equal(now, then) for now, then in zip(module.parameters(), before, strict=True))


def test_phases_follow_the_budget() -> None:
    run = started(Budget(warmup_steps=2, equilibrium_rounds=1, finish_rounds=1, student_steps=2))
    assert [run.phase(step).name for step in range(run.total_steps)] == [
        *("warm-up", "warm-up", "calibration"),
        *("equilibrium", "equilibrium", "equilibrium"),
        *("finish", "finish", "finish"),
    ]
    with pytest.raises(ValueError, match="beyond the last"):
        run.phase(run.total_steps)


def test_each_step_trains_the_network_whose_turn_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equilibrium, "share_step_sizes", lambda quantized, error: [])
    run = started(Budget(warmup_steps=1, equilibrium_rounds=2, finish_rounds=1, student_steps=2))
    turns = []
    for step in range(run.total_steps):
        generator, quantized = snapshot(run.synthesis.state), snapshot(run.quantized)
        run.run_step(step)
        turns.append("G" * moved(run.synthesis.state, generator) + "Q" * moved(run.quantized, quantized))
    # The calibration, which sets the grids of Q, follows the warm-up.
    assert turns == ["G", "Q", "G", "Q", "Q", "G", "Q", "Q", "G", "Q", "Q"]


def test_the_learning_rate_falls_in_the_finish_alone() -> None:
    run = started(Budget(warmup_steps=1, equilibrium_rounds=2, finish_rounds=10, student_steps=1))
    rates = []
    for step in range(run.total_steps):
        run.run_step(step)
        rates.append(run.student_optimizer.param_groups[0]["lr"] / Recipe().step_size_lr)
    assert rates[3:6:2] == [1, 1]
    assert rates[7::2] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 20)) for step in range(1, 20, 2)])
    assert {group["lr"] for group in run.synthesis.optimizer.param_groups} == {
        Recipe().equilibrium_rate * Recipe().generator_lr
    }


def test_another_recipe_brings_its_learning_rates() -> None:
    run = started(Budget(warmup_steps=1, equilibrium_rounds=1, finish_rounds=1, student_steps=1))
    before = [group["base_lr"] for group in run.student_optimizer.param_groups]
    recipe = run.recipe
    run.use_recipe(
        replace(
            recipe,
            weight_lr=2 * recipe.weight_lr,
            bias_lr=2 * recipe.bias_lr,
            step_size_lr=2 * recipe.step_size_lr,
            zero_point_lr=2 * recipe.zero_point_lr,
        )
    )
    assert [group["base_lr"] for group in run.student_optimizer.param_groups] == pytest.approx([2 * b for b in before])


def test_efforts_are_ordered() -> None:
    fast, balanced, best = (BUDGETS[effort] for effort in ("fast", "balanced", "best"))
    for name in ("warmup_steps", "equilibrium_rounds", "finish_rounds"):
        assert getattr(fast, name) < getattr(balanced, name) < getattr(best, name)


def test_images_beyond_64_pixels_are_rounded_on_instead_of_trained_on() -> None:
    causal = METHODS["causal"]
    for effort in BUDGETS:
        small, large = causal.budgets_for((3, 64, 64))[effort], causal.budgets_for((3, 64, 65))[effort]
        assert small == BUDGETS[effort]
        assert small.equilibrium_rounds + small.finish_rounds > 0
        assert large.equilibrium_rounds + large.finish_rounds == 0
        assert large.rounding_images > 0
    gdfq = METHODS["gdfq"]
    assert gdfq.budgets_for((3, 224, 224)) is gdfq.budgets_for((3, 32, 32))


def test_generator_comes_to_show_the_class_and_the_statistics() -> None:
    run = started(Budget(warmup_steps=60, equilibrium_rounds=1, finish_rounds=1, student_steps=1))
    assert fall_of("statistics_loss", run) < 0.65
    # A network that was never trained shows its classes where little else is asked.
    assert fall_of("class_loss", started(run.budget, recipe=Recipe(class_weight=100.0))) < 0.9


def fall_of(loss: str, run: Equilibrium) -> float:
    """The mean of the warm-up's last ten steps, as a share of the first one."""
    values = [run.run_step(step)[loss] for step in range(60)]
    return sum(values[-10:]) / 10 / values[0]


def test_quantized_network_comes_closer_to_the_float_one() -> None:
    run = started(Budget(warmup_steps=10, equilibrium_rounds=1, finish_rounds=20), "w2a4")
    metrics = [run.run_step(step) for step in range(run.total_steps)]
    losses = [m["feature_loss"] for m in metrics if "feature_loss" in m]
    early, late = sum(losses[:5]), sum(losses[-5:])
    assert late < 0.8 * early


def test_calibration_sets_every_grid_and_the_input_from_the_pixels() -> None:
    run = started(Budget(warmup_steps=1, equilibrium_rounds=1, finish_rounds=1, student_steps=1))
    run.calibrate()
    quantizers = {n: m for n, m in run.quantized.named_modules() if isinstance(m, ActivationQuantizer)}
    assert float(quantizers["activation_quantizers.images"].scale.detach()) == pytest.approx(2 / 127, rel=1e-5)
    assert not quantizers["activation_quantizers.relu"].zero_point.requires_grad
    assert quantizers["activation_quantizers.conv2d_1"].zero_point.requires_grad
    assert float(quantizers["activation_quantizers.conv2d_1"].zero_point.detach()) > 0


class Reinjecting(nn.Module):
    """Its second layer reads the image beside features that reach far beyond white."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(7, 8, 1), nn.Linear(8, 5)
        nn.init.constant_(self.first.bias, 20.0)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.cat([images, self.first(images)], 1)
        return self.fc(self.second(features).relu().mean((2, 3)))


def test_features_beside_the_image_are_not_cut_to_black_and_white() -> None:
    options = make_options(bits="w8a8", input_shape=(3, 8, 8))
    prepared = prepare(Reinjecting(), options)
    views = NetworkViews(prepared.captured, prepared.folded, prepared.quantized)
    views.calibrate([torch.rand(4, 3, 8, 8)], BOUNDS)
    grid = prepared.quantized.activation_quantizers.images
    assert float((255 - grid.zero_point) * grid.scale) > 18


@pytest.mark.parametrize(("start", "end"), [(-3.0, 0), (17.0, 15), (7.4, 7)])
def test_a_zero_point_stays_among_the_codes(start: float, end: int) -> None:
    quantizer = ActivationQuantizer(4)
    quantizer.set_range(0.5, start)
    quantizer.hold_zero_point()
    values = torch.linspace(-9, 9, 50)
    assert float(quantizer.freeze().zero_point) == end
    assert torch.equal(quantizer(values), quantizer.freeze()(values))
    assert float(quantizer.zero_point) != 0


def test_weights_move_in_units_of_their_step_size() -> None:
    run = started(Budget(warmup_steps=1, equilibrium_rounds=1, finish_rounds=1, student_steps=1))
    run.run_step(0)
    quantizer = run.quantized.get_submodule("weight_quantizers.conv2d")
    weight = run.quantized.get_parameter("layers.conv2d.weight")
    assert isinstance(quantizer, WeightQuantizer)
    unit, before = float(quantizer.scale.detach().mean()), weight.detach().clone()
    run.calibrate()
    run._train_student(1.0)
    # Adam's first step has the size of the learning rate.
    assert float((weight - before).abs().max()) == pytest.approx(Recipe().weight_lr * unit, rel=0.01)


def test_metrics_are_finite_and_complete() -> None:
    run = started(Budget(warmup_steps=1, equilibrium_rounds=1, finish_rounds=1, student_steps=1))
    metrics = run.run_step(0) | run.run_step(1) | run.run_step(2) | run.run_step(3)
    assert {"discrepancy", "sensitivity_pretrained", "sensitivity_quantized", "content_rate", "agreement"} <= set(
        metrics
    )
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_finish_begins_by_sharing_step_sizes_if_q_comes_nearer_to_p(monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(Budget(warmup_steps=1, equilibrium_rounds=1, finish_rounds=1, student_steps=1))
    seen = []

    def record(quantized: fx.GraphModule, error: Callable[[], float]) -> None:
        before = error()
        for module in quantized.modules():
            if isinstance(module, ActivationQuantizer):
                module.log_scale.data += 1.0
        seen.append((before, error()))

    monkeypatch.setattr(equilibrium, "share_step_sizes", record)
    for step in range(run.total_steps):
        assert len(seen) == (1 if step > 4 else 0)
        run.run_step(step)
    (before, after) = seen[0]
    assert 0 < before < after


def test_no_weight_is_rounded_again_while_step_sizes_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(Budget(warmup_steps=1, equilibrium_rounds=1, finish_rounds=1, student_steps=1))
    calls = []
    quantizer = next(module for module in run.quantized.modules() if isinstance(module, WeightQuantizer))

    def record(quantized: fx.GraphModule, error: Callable[[], float]) -> None:
        kept = error()
        quantizer.log_scale.data += 1.0
        calls.append((kept, error()))
        quantizer.log_scale.data -= 1.0

    monkeypatch.setattr(equilibrium, "share_step_sizes", record)
    for step in range(run.total_steps):
        run.run_step(step)
    assert calls[0][0] == calls[0][1]


def test_weights_left_in_float_take_no_gradient() -> None:
    run = started(Budget(warmup_steps=1, equilibrium_rounds=1, finish_rounds=1, student_steps=1), "w32a4")
    for step in range(4):
        run.run_step(step)
    assert all(parameter.grad is None for parameter in run.quantized.get_submodule("layers").parameters())


def test_a_step_whose_gradient_overflows_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(Budget(warmup_steps=0, equilibrium_rounds=1, finish_rounds=0, student_steps=1))
    run.calibrate()
    run.student_optimizer.param_groups[0]["lr"] = 1e-3
    batch, loss = run.student_batch(), run.student_loss

    def overflowing(batch: StudentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = loss(batch)
        return value * torch.tensor(3e38) * torch.tensor(10.0), metrics

    before = snapshot(run.quantized)
    monkeypatch.setattr(run, "student_loss", overflowing)
    assert run.update_student(batch)["left_out"] == 1
    assert not moved(run.quantized, before)
    monkeypatch.setattr(run, "student_loss", loss)
    assert run.update_student(batch)["left_out"] == 0
    assert moved(run.quantized, before)
    assert all(bool(parameter.isfinite().all()) for parameter in run.quantized.parameters())
