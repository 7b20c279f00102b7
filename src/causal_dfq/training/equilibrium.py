"""Generator and quantized network in turn, towards the equilibrium of their intervened distributions.

    warm-up       G alone: images that P takes for its training images
    equilibrium   G, then Q, in turn
    finish        the same rounds, Q's learning rate falling to zero

[paper] the method approaches an equilibrium of causality-driven intervened distributions; [ours] this
schedule. Near the equilibrium Q's style sensitivity has come down to P's and the interventional
discrepancy is flat: both are measured in every student step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from causal_dfq.causal.discrepancy import (
    contrastive_discrepancy,
    interventional_discrepancy,
    matching_discrepancy,
    style_sensitivity,
)
from causal_dfq.causal.graph import (
    CONTENT,
    IMAGE,
    STYLE,
    Content,
    StructuralCausalModel,
    image_model,
    style_interventions,
)
from causal_dfq.network.fold import LAYERS
from causal_dfq.quantizer.modules import ActivationQuantizer, WeightQuantizer
from causal_dfq.quantizer.placement import WEIGHT_QUANTIZERS
from causal_dfq.quantizer.residual_grids import share_step_sizes
from causal_dfq.synthesis.generator import (
    STYLE_SIZE,
    VARIATION_SIZE,
    ContentStyleGenerator,
    initialize,
    mode_seeking_loss,
    style_diversity_loss,
)
from causal_dfq.synthesis.scenes import draw_scenes, hide_behind
from causal_dfq.synthesis.statistics import running_statistics, statistics_distance
from causal_dfq.training.budget import Budget, Recipe
from causal_dfq.training.views import NetworkViews

Metrics = dict[str, float]
WARMUP, EQUILIBRIUM, FINISH = "warm-up", "equilibrium", "finish"
CALIBRATION_BATCHES = 8


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


@dataclass(frozen=True)
class StudentBatch:
    """What Q learns on.

    Args:
        images: (N, C, H, W), in the order of `_student_images`.
        logits: P's, (N, K).
        features: P's values of every quantized tensor.
        embedding: P's, (N, D).
    """

    images: Tensor
    logits: Tensor
    features: list[Tensor]
    embedding: Tensor


class Equilibrium:
    """The state of a run, one step at a time.

    Every random draw comes from `random`; the learning rates are functions of the step. The state
    dictionary therefore holds all that the next step depends on.
    """

    def __init__(
        self,
        views: NetworkViews,
        image_shape: tuple[int, int, int],
        pixel_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None,
        budget: Budget,
        recipe: Recipe,
        seed: int,
        device: torch.device,
    ) -> None:
        self.budget, self.recipe, self.seed, self.device = budget, recipe, seed, device
        self.views = views.to(device)
        self.quantized = self.views.quantized
        self.random = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            self.generator = ContentStyleGenerator(views.classes, image_shape, pixel_bounds)
        initialize(self.generator, self.random)
        self.generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.image_shape, self.pixel_bounds = image_shape, pixel_bounds
        self.statistics = [
            (mean.to(device), variance.to(device)) for mean, variance in running_statistics(views.captured)
        ]
        # Fused, each group is one pass; autograd lays a gradient out as its parameter, which that takes for granted.
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), betas=(0.5, 0.99), fused=True)
        self.student_optimizer = torch.optim.Adam(student_parameter_groups(self.quantized, recipe), fused=True)
        self.model: StructuralCausalModel = image_model(
            views.classes,
            VARIATION_SIZE,
            STYLE_SIZE,
            self.generator,
            self.views.pretrained_logits,
            self.views.quantized_logits,
            device,
        )

    @property
    def total_steps(self) -> int:
        """Steps of all phases together; each trains one of the two networks once."""
        budget = self.budget
        return budget.warmup_steps + budget.equilibrium_steps + budget.finish_steps

    def phase(self, step: int) -> Phase:
        """The phase of a step, counted from 0.

        Raises:
            ValueError: the step lies beyond the last one.
        """
        for name, length in (
            (WARMUP, self.budget.warmup_steps),
            (EQUILIBRIUM, self.budget.equilibrium_steps),
            (FINISH, self.budget.finish_steps),
        ):
            if step < length:
                return Phase(name, step, length)
            step -= length
        raise ValueError(f"step lies {step} beyond the last one")

    def run_step(self, step: int) -> Metrics:
        """One step of the algorithm; returns its losses and measured quantities."""
        phase = self.phase(step)
        if step == self.budget.warmup_steps:
            self._calibrate()
        if phase.name == WARMUP:
            # Constant for half of the phase, then down to the rate that the equilibrium keeps.
            fall = max(0.0, 2 * phase.position - 1)
            return self._train_generator(1 - (1 - self.recipe.equilibrium_rate) * fall)
        if phase.name == FINISH and phase.step == 0:
            self._share_step_sizes()
        is_generators_turn = phase.step % self.budget.steps_per_round == 0
        if is_generators_turn:
            return self._train_generator(self.recipe.equilibrium_rate)
        rate = 0.5 * (1 + math.cos(math.pi * phase.position)) if phase.name == FINISH else 1.0
        return self._train_student(rate)

    def _interventions(self, contents: int) -> tuple[StructuralCausalModel, Tensor]:
        """Fresh contents, some between classes, under M styles: the model, and its images (M * N, C, H, W)."""
        content = self.model.sample(CONTENT, contents, self.random).blend(self.recipe.blended, self.random)
        intervened = style_interventions(self.model, content, self.recipe.styles, self.random)
        with self.views.autocast():
            images = intervened.sample(IMAGE, contents, self.random)
        return intervened.do(image=images), images

    def _twin_interventions(self, contents: int) -> StructuralCausalModel:
        """Like `_interventions`, but content n + N / 2 has the class and the styles of content n.

        Twins differ in the variation inside the class alone, so that it can be asked to show.
        """
        half = contents // 2
        drawn = self.model.sample(CONTENT, 2 * half, self.random)
        content = Content.of_classes(drawn.labels[:half].repeat(2), drawn.variation)
        style = self.model.sample(STYLE, self.recipe.styles * half, self.random)
        twin_style = style.unflatten(0, (self.recipe.styles, half)).repeat(1, 2, 1).flatten(0, 1)
        return self.model.do(content=content.repeat(self.recipe.styles), style=twin_style)

    def _by_style(self, values: Tensor) -> Tensor:
        """(M * N, ...) -> (M, N, ...)."""
        by_style: Tensor = values.unflatten(0, (self.recipe.styles, -1))
        return by_style

    def _train_generator(self, rate: float) -> Metrics:
        _set_rate(self.generator_optimizer, rate * self.recipe.generator_lr)
        loss, metrics = self.generator_loss()
        self.generator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.generator_optimizer.step()
        return _as_numbers(metrics)

    def generator_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """G's loss on fresh interventions, and its parts and measured quantities, all scalars.

        Source: the losses of docs/method.md, each with its own ([paper], [notes], [ours]) where it is defined.
        """
        recipe = self.recipe
        intervened = self._twin_interventions(recipe.generator_contents)
        content = intervened.sample(CONTENT, 0, self.random)
        style = intervened.sample(STYLE, 0, self.random)
        labels = content.labels
        with self.views.autocast():
            images = intervened.sample(IMAGE, 0, self.random)
        logits, statistics, middle = self.views.statistics_view(images)
        class_loss = nn.functional.cross_entropy(logits, labels)
        statistics_loss = statistics_distance(statistics, self.statistics)
        invariance_loss = style_sensitivity(self._by_style(logits))
        diversity_loss = style_diversity_loss(self._by_style(images), self._by_style(style))
        variation_loss = self._variation_loss(content.variation, images, middle)
        loss = (
            recipe.class_weight * class_loss
            + recipe.variation_weight * variation_loss
            + recipe.statistics_weight * statistics_loss
            + recipe.invariance_weight * invariance_loss
            + recipe.diversity_weight * diversity_loss
        )
        return loss, {
            "generator_loss": loss,
            "class_loss": class_loss,
            "statistics_loss": statistics_loss,
            "invariance_loss": invariance_loss,
            "diversity_loss": diversity_loss,
            "variation_loss": variation_loss,
            "content_rate": (logits.detach().argmax(1) == labels).float().mean(),
        }

    def _variation_loss(self, variation: Tensor, images: Tensor, middle: Tensor) -> Tensor:
        """Mode seeking over twins, in the picture and in the features half way through P."""
        scale = self.statistics[len(self.statistics) // 2][1].mean().sqrt()
        causes = self._twins(variation)
        return mode_seeking_loss(causes, self._twins(images)) + mode_seeking_loss(causes, self._twins(middle / scale))

    def _twins(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(M * N, ...) of `_twin_interventions` -> each content beside its twin, (M * N / 2, ...) both."""
        first, second = self._by_style(values).chunk(2, 1)
        return first.flatten(0, 1), second.flatten(0, 1)

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Initial ranges of the activation quantizers, on images of the warmed-up generator."""
        self.views.calibrate((self._student_images() for _ in range(CALIBRATION_BATCHES)), self.pixel_bounds)

    @torch.no_grad()
    def _share_step_sizes(self) -> None:
        """One step size for an addition where that brings Q nearer to P, now that its weights have settled."""
        images = self._student_images()[::2]
        targets, target_features, _ = self.views.pretrained_view(images)
        recipe = self.recipe

        def error() -> float:
            logits, feature_loss, _ = self.views.quantized_view(images, target_features)
            matching = matching_discrepancy(targets, logits, recipe.temperature)
            return float(
                recipe.matching_weight * recipe.temperature**2 * matching + recipe.feature_weight * feature_loss
            )

        share_step_sizes(self.quantized, error)

    def _student_images(self) -> Tensor:
        """What Q learns on: (M * N, ...) images under interventions, then half hidden ones, then scenes."""
        recipe = self.recipe
        _, images = self._interventions(recipe.student_contents + recipe.hidden_contents)
        shown, hidden = self._by_style(images).split([recipe.student_contents, recipe.hidden_contents], 1)
        hidden = hidden.flatten(0, 1)
        scenes = draw_scenes(len(hidden) + recipe.scenes, self.image_shape, self.random).to(self.device)
        scenes = torch.clamp(scenes, self.generator.lowest, self.generator.highest)
        half_hidden = hide_behind(hidden, scenes[: len(hidden)], self.random)
        batch = torch.cat([shown.flatten(0, 1), half_hidden, scenes[len(hidden) :]])
        return batch.contiguous(memory_format=torch.channels_last)

    def restore_trainable_zero_points(self) -> None:
        """After loading a state: a zero point at the lowest code is fixed there, all others are learned."""
        for module in self.quantized.modules():
            if isinstance(module, ActivationQuantizer):
                module.zero_point.requires_grad_(bool(module.zero_point != 0))

    def _train_student(self, rate: float) -> Metrics:
        _set_student_rates(self.student_optimizer, rate)
        return self.update_student(self.student_batch())

    @torch.no_grad()
    def student_batch(self) -> StudentBatch:
        """Fresh images, and what P makes of them."""
        images = self._student_images()
        return StudentBatch(images, *self.views.pretrained_view(images))

    def update_student(self, batch: StudentBatch) -> Metrics:
        """One step of Q's optimizer, at the rates set; returns the losses and the measured quantities."""
        loss, metrics = self.student_loss(batch)
        self.student_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.student_optimizer.step()
        return _as_numbers(metrics)

    def student_loss(self, batch: StudentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Q's loss on a batch, and its parts and measured quantities, all scalars.

        Source: the losses of docs/method.md, each with its own ([paper], [notes], [ours]) where it is defined.
        """
        recipe = self.recipe
        logits, feature_loss, embedding = self.views.quantized_view(batch.images, batch.features)
        # What a scene covers is not the content's: the causal losses see the fully shown images alone.
        intervened = recipe.styles * recipe.student_contents
        by_style_p, by_style_q = self._by_style(batch.logits[:intervened]), self._by_style(logits[:intervened])
        matching = matching_discrepancy(batch.logits, logits, recipe.temperature)
        discrepancy = interventional_discrepancy(by_style_p, by_style_q, recipe.temperature)
        contrastive = contrastive_discrepancy(
            self._by_style(batch.embedding[:intervened]),
            self._by_style(embedding[:intervened]),
            recipe.contrastive_tau,
        )
        loss = (
            recipe.matching_weight * recipe.temperature**2 * matching
            + recipe.discrepancy_weight * recipe.temperature**2 * discrepancy
            + recipe.contrastive_weight * contrastive
            + recipe.feature_weight * feature_loss
        )
        with torch.no_grad():
            return loss, {
                "student_loss": loss,
                "matching_loss": matching,
                "feature_loss": feature_loss,
                "contrastive_loss": contrastive,
                "discrepancy": interventional_discrepancy(by_style_p, by_style_q),
                "sensitivity_pretrained": style_sensitivity(by_style_p),
                "sensitivity_quantized": style_sensitivity(by_style_q),
                "agreement": (logits.argmax(1) == batch.logits.argmax(1)).float().mean(),
            }


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
        # A bias has the size of the output: its unit is a weight step over the layer's fan-in.
        yield {"params": [bias], "base_lr": recipe.bias_lr * unit}


def _as_numbers(metrics: dict[str, Tensor]) -> Metrics:
    # One transfer from the device for all of them.
    values = torch.stack([value.detach().float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


def _set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _set_student_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["base_lr"]
