"""Generator and quantized network in turn, towards the equilibrium of their intervened distributions.

    warm-up          G alone: images that P takes for its training images
    imprint          scenes changed until P sees classes in them
    calibration      Q's ranges, on images of both kinds
    rounding         Q's weights layer by layer in closed form, on such images
    reconstruction   Q unit by unit by gradient steps, on such images
    equilibrium      G, then Q, in turn
    finish           the same rounds, Q's learning rate falling to zero

[paper] the method approaches an equilibrium of causality-driven intervened distributions; [ours] this
schedule. Near the equilibrium Q's style sensitivity has come down to P's and the interventional
discrepancy is flat: both are measured in every student step, where a generator makes interventions.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from causal_dfq.causal.discrepancy import matching_discrepancy
from causal_dfq.network.fold import LAYERS
from causal_dfq.network.operations import attribute
from causal_dfq.quantizer.modules import ActivationQuantizer, WeightQuantizer
from causal_dfq.quantizer.placement import WEIGHT_QUANTIZERS
from causal_dfq.quantizer.residual_grids import share_step_sizes
from causal_dfq.synthesis.pixel_space import PixelBounds
from causal_dfq.training.budget import LARGE_IMAGE_BUDGETS, Budget, Recipe
from causal_dfq.training.generator_training import GeneratorTraining
from causal_dfq.training.imprint_synthesis import ImprintSynthesis
from causal_dfq.training.layer_rounding import RoundingSettings, layer_rounding, most_images
from causal_dfq.training.pool_training import PoolTraining, Synthesis
from causal_dfq.training.reconstruction import Schedule, reconstruction
from causal_dfq.training.sensitivity import choose_weight_bits, quantized_layers
from causal_dfq.training.student_loss import StudentBatch, StudentImages, student_loss
from causal_dfq.training.unit_walk import UnitWalk, reconstruction_units
from causal_dfq.training.views import NetworkViews

Metrics = dict[str, float]
WARMUP, IMPRINT, CALIBRATION, ROUNDING, RECONSTRUCTION, EQUILIBRIUM, FINISH = (
    "warm-up",
    "imprint",
    "calibration",
    "rounding",
    "reconstruction",
    "equilibrium",
    "finish",
)
CALIBRATION_BATCHES = 8
SENSITIVITY_BATCHES, SENSITIVITY_PIXELS = 2, 16 * 224 * 224
_MOST_ITERATIONS = LARGE_IMAGE_BUDGETS["best"].imprint_iterations


@dataclass(frozen=True)
class Phase:
    """Where a step stands: the phase, its number in it from 0, and how many steps the phase has."""

    name: str
    step: int
    length: int

    @property
    def position(self) -> float:
        """From 0 towards 1."""
        return self.step / self.length


class Equilibrium:
    """The state of a run, one step at a time.

    With a `weight_budget`, the bytes that all weights may take, each layer's bits are chosen when there are images.
    Every random draw comes from `random`; the learning rates are functions of the step. The state
    dictionary therefore holds all that the next step depends on.
    """

    def __init__(
        self,
        views: NetworkViews,
        image_shape: tuple[int, int, int],
        pixel_bounds: PixelBounds,
        budget: Budget,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        synthesis: Synthesis = "generator",
        weight_budget: int | None = None,
    ) -> None:
        self.budget, self.recipe, self.seed, self.device = budget, recipe, seed, device
        self._weight_budget = weight_budget
        self.views = views.to(device)
        self.quantized = self.views.quantized
        self._activation_quantizers = [
            module for module in self.quantized.modules() if isinstance(module, ActivationQuantizer)
        ]
        self.random = torch.Generator().manual_seed(seed)
        self.synthesis = self._make_synthesis(synthesis, image_shape, pixel_bounds)
        self.use_recipe(recipe)
        self.image_shape, self.pixel_bounds = image_shape, pixel_bounds
        self._unit_count = len(reconstruction_units(views.folded))
        self._walk: UnitWalk | None = None
        self.rounding = RoundingSettings()

    def _make_synthesis(
        self, kind: Synthesis, image_shape: tuple[int, int, int], pixel_bounds: PixelBounds
    ) -> GeneratorTraining | ImprintSynthesis | PoolTraining:
        if kind == "generator":
            return GeneratorTraining(self.views, image_shape, pixel_bounds, self.random, self.device)
        if kind == "imprints":
            return ImprintSynthesis(self.views, image_shape, pixel_bounds, self.device)
        steps = self.budget.warmup_steps
        return PoolTraining(self.views, image_shape, pixel_bounds, kind, self.recipe, steps, self.random, self.device)

    def use_recipe(self, recipe: Recipe) -> None:
        """Another recipe, before the first step."""
        self.recipe = recipe
        # Fused, each group is one pass; autograd lays a gradient out as its parameter, which that takes for granted.
        self.student_optimizer = torch.optim.Adam(student_parameter_groups(self.quantized, recipe), fused=True)
        if not isinstance(self.synthesis, PoolTraining) and self.budget.imprint_batches:
            self.synthesis.prepare_imprints(
                self.budget.imprint_batches, recipe.pool_batch, self.budget.imprint_iterations
            )

    def leave_out_unseen_imprints(self) -> None:
        """About as many imprinted scenes as rounding looks at, where it alone fits Q; before the first step.

        Of large feature maps not so many fit into its memory as the budget has. The steps that they would have taken
        go to the others, up to as many iterations as effort `best` has. Where bits are chosen too, that is done on all
        of them.
        """
        budget = self.budget
        if budget.trains_student or not budget.rounding_images or self._weight_budget is not None:
            return
        batches = max(1, round(most_images(self.views, self.rounding.largest_bytes) / self.recipe.pool_batch))
        if batches < budget.imprint_batches:
            iterations = max(budget.imprint_iterations, min(_MOST_ITERATIONS, budget.imprint_steps // batches))
            self.budget = replace(budget, imprint_batches=batches, imprint_iterations=iterations)
            self.use_recipe(self.recipe)

    @property
    def steps_before_calibration(self) -> int:
        """Steps that make images; they do not depend on Q."""
        return self.budget.warmup_steps + self.budget.imprint_steps

    @property
    def total_steps(self) -> int:
        """Steps of all phases together; each trains one of the two networks once, or fits one unit."""
        return sum(length for _, length in self._phases)

    @property
    def _phases(self) -> tuple[tuple[str, int], ...]:
        """Name and number of steps, in order."""
        budget = self.budget
        return (
            (WARMUP, budget.warmup_steps),
            (IMPRINT, budget.imprint_steps),
            (CALIBRATION, 1),
            (ROUNDING, self._unit_count if budget.rounding_images else 0),
            (RECONSTRUCTION, self._unit_count if budget.reconstruction_iterations else 0),
            (EQUILIBRIUM, budget.equilibrium_steps),
            (FINISH, budget.finish_steps),
        )

    def phase(self, step: int) -> Phase:
        """The phase of a step, counted from 0.

        Raises:
            ValueError: the step lies beyond the last one.
        """
        for name, length in self._phases:
            if step < length:
                return Phase(name, step, length)
            step -= length
        raise ValueError(f"step lies {step} beyond the last one")

    def run_step(self, step: int) -> Metrics:
        """One step of the algorithm; returns its losses and measured quantities."""
        phase = self.phase(step)
        if phase.name == WARMUP:
            return self.warm_up(phase.position)
        if phase.name == IMPRINT:
            return self._imprint(phase.step)
        if phase.name == CALIBRATION:
            self.calibrate()
            return {}
        if phase.name in (ROUNDING, RECONSTRUCTION):
            return self._fit_unit(phase)
        if phase.name == FINISH and phase.step == 0:
            self._share_step_sizes()
        is_generators_turn = phase.step % self.budget.steps_per_round == 0
        if is_generators_turn:
            return self.keep_up()
        rate = 0.5 * (1 + math.cos(math.pi * phase.position)) if phase.name == FINISH else 1.0
        return self._train_student(rate)

    def _imprint(self, step: int) -> Metrics:
        assert self.synthesis.imprints is not None
        return _as_numbers(self.synthesis.imprints.step(step, self.recipe, self.random))

    def _fit_unit(self, phase: Phase) -> Metrics:
        """Fits one unit of Q; the images are drawn apart, so that a resumed run draws them again."""
        # In closed form there is no gradient to be fast for, and a layer's least squares see every error of its inputs.
        with self.views.in_float32() if phase.name == ROUNDING else contextlib.nullcontext():
            if self._walk is None:
                self._walk = self._rounding() if phase.name == ROUNDING else self._reconstruction()
                self._walk.skip_to(phase.step)
            fit = self._walk.fit_next()
        if phase.step == phase.length - 1:
            self._walk = None
            self._follow_step_sizes()
        return {"unit_error_before": fit.before, "unit_error_after": fit.after}

    def _rounding(self) -> UnitWalk:
        images = self.images_apart(self._batches_of(self.budget.rounding_images))
        if self.synthesis.imprints is not None:
            images = torch.cat([images, self.synthesis.imprints.images.float()])
        return layer_rounding(self.views, images, self.rounding, self.seed)

    def _reconstruction(self) -> UnitWalk:
        images = self.images_apart(self._batches_of(self.recipe.reconstruction_images))
        return reconstruction(self.views, images, Schedule(self.budget.reconstruction_iterations), self.seed)

    @torch.no_grad()
    def images_apart(self, batches: int) -> Tensor:
        """So many batches of what Q learns on, (N, C, H, W), the same ones whatever was drawn before."""
        random = torch.Generator().manual_seed(self.seed)
        return torch.cat([self.student_images(random).images for _ in range(batches)])

    def sensitivity_images(self) -> Tensor:
        """The images that layers are compared on: few where they are large, since each layer sees them by itself."""
        return self.images_apart(SENSITIVITY_BATCHES)[: self._sensitivity_count()]

    def _images_in_two(self) -> tuple[Tensor, Tensor]:
        """Images that bits are compared on, and others that layers are rounded on: imprinted scenes where there are."""
        imprints = self.synthesis.imprints
        pool = self.images_apart(2 * SENSITIVITY_BATCHES) if imprints is None else imprints.images.float()
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(self.seed)).to(pool.device)
        count = min(self._sensitivity_count(), len(pool) // 2)
        return pool[order[:count]], pool[order[count:]]

    def _sensitivity_count(self) -> int:
        _, height, width = self.image_shape
        return max(8, SENSITIVITY_PIXELS // (height * width))

    def _batches_of(self, images: int) -> int:
        return -(-images // self.recipe.student_images)

    def _follow_step_sizes(self) -> None:
        """Learning rates of weights are in units of their step sizes, which fitting has changed."""
        fresh = student_parameter_groups(self.quantized, self.recipe)
        for group, now in zip(self.student_optimizer.param_groups, fresh, strict=True):
            group["base_lr"] = now["base_lr"]

    def warm_up(self, position: float) -> Metrics:
        """A step of synthesis alone, at a position in [0, 1) of the warm-up."""
        return _as_numbers(self.synthesis.warm_up(position, self.recipe, self.random))

    def keep_up(self) -> Metrics:
        """A step of synthesis in the equilibrium."""
        return _as_numbers(self.synthesis.keep_up(self.recipe, self.random))

    def student_images(self, random: torch.Generator) -> StudentImages:
        """What Q learns on, in the recipe's mix."""
        return self.synthesis.student_images(self.recipe, random)

    @torch.no_grad()
    def calibrate(self) -> None:
        """Bits of each layer where they are to be chosen; initial ranges of the activation quantizers."""
        if self._weight_budget is not None:
            choose_weight_bits(self.views, *self._images_in_two(), self._weight_budget, self.seed)
            self._follow_step_sizes()
        batches = (self.student_images(self.random).images for _ in range(CALIBRATION_BATCHES))
        self.views.calibrate(batches, self.pixel_bounds)

    @torch.no_grad()
    def _share_step_sizes(self) -> None:
        """One step size for an addition where that brings Q nearer to P, now that its weights have settled."""
        images = self.student_images(self.random).images[::2]
        p = self.views.pretrained_view(images)
        recipe = self.recipe

        def error() -> float:
            q = self.views.quantized_view(images, p.features)
            matching = matching_discrepancy(p.logits, q.logits, recipe.temperature)
            weighted = recipe.matching_weight * recipe.temperature**2 * matching
            return float(weighted + recipe.feature_weight * q.feature_error)

        with self._weights_rounded_once():
            share_step_sizes(self.quantized, error)

    @contextlib.contextmanager
    def _weights_rounded_once(self) -> Iterator[None]:
        """For calls of Q between which no weight changes: rounding takes most of a large network's call."""
        with contextlib.ExitStack() as stack:
            for name, quantizer in quantized_layers(self.views):
                stack.enter_context(quantizer.rounded_once(attribute(self.quantized, f"{LAYERS}.{name}.weight")))
            yield

    def restore_trainable_zero_points(self) -> None:
        """After loading a state: a zero point at the lowest code is fixed there, all others are learned."""
        for quantizer in self._activation_quantizers:
            quantizer.zero_point.requires_grad_(bool(quantizer.zero_point != 0))

    def _train_student(self, rate: float) -> Metrics:
        _set_student_rates(self.student_optimizer, rate)
        return self.update_student(self.student_batch())

    @torch.no_grad()
    def student_batch(self) -> StudentBatch:
        """Fresh images, and what P makes of them."""
        drawn = self.student_images(self.random)
        return StudentBatch(drawn, self.views.pretrained_view(drawn.images))

    def update_student(self, batch: StudentBatch) -> Metrics:
        """One step of Q's optimizer, at the rates set; returns the losses and the measured quantities.

        A step whose gradient is not finite changes nothing, and `left_out` is 1: a very deep network's overflows.
        """
        loss, metrics = self.student_loss(batch)
        self.student_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        is_finite = nn.utils.get_total_norm(_gradients(self.student_optimizer)).isfinite()
        if is_finite:
            self.student_optimizer.step()
            for quantizer in self._activation_quantizers:
                quantizer.hold_zero_point()
        return _as_numbers({**metrics, "left_out": ~is_finite})

    def student_loss(self, batch: StudentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Q's loss on a batch, and its parts and measured quantities."""
        return student_loss(self.views, batch, self.recipe)


def student_parameter_groups(quantized: fx.GraphModule, recipe: Recipe) -> list[dict[str, object]]:
    """Adam's groups: each layer's weight moves in units of its own step size [ours]."""
    return list(_parameter_groups(quantized, recipe))


def _parameter_groups(quantized: fx.GraphModule, recipe: Recipe) -> Iterator[dict[str, object]]:
    step_sizes, zero_points = [], []
    for module in quantized.modules():
        if isinstance(module, WeightQuantizer | ActivationQuantizer):
            step_sizes.append(module.log_scale)
        if isinstance(module, ActivationQuantizer):
            zero_points.append(module.zero_point)
    yield {"params": step_sizes, "base_lr": recipe.step_size_lr}
    yield {"params": zero_points, "base_lr": recipe.zero_point_lr}
    layers = dict(quantized.get_submodule(LAYERS).named_children())
    quantizers = dict(quantized.named_modules())
    for name, layer in layers.items():
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, nn.Parameter)
        assert isinstance(bias, nn.Parameter)
        quantizer = quantizers.get(f"{WEIGHT_QUANTIZERS}.{name}")
        if not isinstance(quantizer, WeightQuantizer):
            layer.requires_grad_(False)
            continue
        unit = float(quantizer.scale.detach().mean())
        yield {"params": [weight], "base_lr": recipe.weight_lr * unit}
        yield {"params": [bias], "base_lr": recipe.bias_lr * unit}


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _as_numbers(metrics: dict[str, Tensor]) -> Metrics:
    if not metrics:
        return {}
    # One transfer from the device for all of them.
    values = torch.stack([value.detach().float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


def _set_student_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["base_lr"]
