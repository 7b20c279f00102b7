"""The generator's side of a run: its losses under interventions, and the images that Q learns on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from causal_dfq.causal.discrepancy import style_sensitivity
from causal_dfq.causal.graph import (
    CONTENT,
    IMAGE,
    STYLE,
    Content,
    StructuralCausalModel,
    image_model,
    style_interventions,
)
from causal_dfq.synthesis.class_codes import class_codes, classifier_rows
from causal_dfq.synthesis.generator import (
    STYLE_SIZE,
    VARIATION_SIZE,
    ContentStyleGenerator,
    initialize,
    mode_seeking_loss,
    style_diversity_loss,
)
from causal_dfq.synthesis.imprint import scenes_within
from causal_dfq.synthesis.low_pass import low_pass
from causal_dfq.synthesis.measured_norm import middle_norm
from causal_dfq.synthesis.pixel_space import PixelBounds, PixelSpace
from causal_dfq.synthesis.scenes import hide_behind
from causal_dfq.synthesis.statistics import running_statistics, statistics_distance
from causal_dfq.training.budget import Recipe
from causal_dfq.training.imprinting import Imprinting
from causal_dfq.training.student_loss import UNLABELLED, StudentImages
from causal_dfq.training.views import NetworkViews

_FEWEST_INTERVENED = 2


class GeneratorTraining:
    """A generator, its optimizer and the causal model that it is the image's mechanism in.

    Args:
        random: draws the generator's weights.
    """

    def __init__(
        self,
        views: NetworkViews,
        image_shape: tuple[int, int, int],
        pixel_bounds: PixelBounds,
        random: torch.Generator,
        device: torch.device,
    ) -> None:
        self.views, self.image_shape, self.device = views, image_shape, device
        with torch.random.fork_rng(devices=[]):
            self.generator = ContentStyleGenerator(views.classes, image_shape, pixel_bounds)
        initialize(self.generator, random)
        rows = classifier_rows(views.captured)
        if rows is not None:
            with torch.no_grad():
                self.generator.embedding.weight.copy_(class_codes(rows, VARIATION_SIZE, random))
        self.generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.generator.parameters(), betas=(0.5, 0.99), fused=True)
        self.statistics = [
            (mean.to(device), variance.to(device)) for mean, variance in running_statistics(views.captured)
        ]
        self._middle = middle_norm(views.captured.graph)
        self.model: StructuralCausalModel = image_model(
            views.classes,
            VARIATION_SIZE,
            STYLE_SIZE,
            self.generator,
            views.pretrained_logits,
            views.quantized_logits,
            device,
        )

        self.imprints: Imprinting | None = None

    def prepare_imprints(self, batches: int, batch_size: int, iterations: int) -> None:
        """Makes room for imprinted scenes, which the student's images hold from then on."""
        self.imprints = Imprinting(self.views, self.image_shape, self.pixel_space, batches, batch_size, iterations)

    @property
    def state(self) -> nn.Module:
        """What a checkpoint must hold beside the optimizer."""
        parts: dict[str, nn.Module] = {"generator": self.generator}
        return nn.ModuleDict(parts if self.imprints is None else {**parts, "imprints": self.imprints})

    @property
    def pixel_space(self) -> PixelSpace:
        """What the network reads as pixels."""
        return self.generator.pixel_space

    def warm_up(self, position: float, recipe: Recipe, random: torch.Generator) -> dict[str, Tensor]:
        """A step of the warm-up at a position in [0, 1): full rate for half of it, then down to the equilibrium's."""
        fall = max(0.0, 2 * position - 1)
        return self.step(1 - (1 - recipe.equilibrium_rate) * fall, recipe, random)

    def keep_up(self, recipe: Recipe, random: torch.Generator) -> dict[str, Tensor]:
        """A step of the equilibrium."""
        return self.step(recipe.equilibrium_rate, recipe, random)

    def step(self, rate: float, recipe: Recipe, random: torch.Generator) -> dict[str, Tensor]:
        """One step of G's optimizer at a share of its learning rate; returns losses and measured quantities."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * recipe.generator_lr
        loss, metrics = self.loss(recipe, random)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return metrics

    def loss(self, recipe: Recipe, random: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """G's loss on fresh interventions, and its parts and measured quantities, all scalars.

        Source: the losses of docs/method.md, each with its own ([paper], [notes], [ours]) where it is defined.
        """
        intervened = self._twin_interventions(recipe, random)
        content = intervened.sample(CONTENT, 0, random)
        style = intervened.sample(STYLE, 0, random)
        labels = content.labels
        with self.views.autocast():
            images = intervened.sample(IMAGE, 0, random)
        logits, statistics, middle = self.views.statistics_view(images)
        by_style = [values.unflatten(0, (recipe.styles, -1)) for values in (logits, images, style)]
        class_loss = nn.functional.cross_entropy(logits, labels)
        statistics_loss = statistics_distance(statistics, self.statistics)
        invariance_loss = style_sensitivity(by_style[0])
        diversity_loss = style_diversity_loss(by_style[1], by_style[2])
        variation_loss = self._variation_loss(content.variation, images, middle, recipe.styles)
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

    def interventions(self, contents: int, recipe: Recipe, random: torch.Generator) -> tuple[Content, Tensor]:
        """Fresh contents, some between classes, under M styles: the contents (N) and the images (M * N, C, H, W)."""
        content = self.model.sample(CONTENT, contents, random).blend(recipe.blended, random)
        intervened = style_interventions(self.model, content, recipe.styles, random)
        with self.views.autocast():
            images: Tensor = intervened.sample(IMAGE, contents, random)
        return content, images

    def student_images(self, recipe: Recipe, random: torch.Generator) -> StudentImages:
        """(M * N, ...) images under interventions, then half hidden ones, then scenes, then imprinted ones.

        What is whole and under interventions has a class.
        """
        share = 0.0 if self.imprints is None else recipe.imprinted
        imprinted, imprinted_hidden = (round(share * n) for n in (recipe.student_contents, recipe.hidden_contents))
        # The contrastive discrepancy sets a content apart from another one.
        imprinted = max(0, min(imprinted, recipe.student_contents - _FEWEST_INTERVENED))
        shown_contents = recipe.student_contents - imprinted
        hidden_contents = recipe.hidden_contents - imprinted_hidden
        parts: list[Tensor] = []
        of_shown = torch.empty(0, dtype=torch.int64, device=self.device)
        hidden = torch.empty(0, *self.image_shape, device=self.device)
        if shown_contents + hidden_contents:
            content, images = self.interventions(shown_contents + hidden_contents, recipe, random)
            by_style = images.unflatten(0, (recipe.styles, -1))
            shown, hidden = (part.flatten(0, 1) for part in by_style.split([shown_contents, hidden_contents], 1))
            parts.append(shown)
            of_one_class = torch.where(content.second_share == 0, content.labels, UNLABELLED)
            of_shown = of_one_class[:shown_contents].repeat(recipe.styles)
        if len(hidden) + recipe.scenes:
            scenes = scenes_within(len(hidden) + recipe.scenes, self.image_shape, self.pixel_space, random)
            if len(hidden):
                parts.append(hide_behind(hidden, scenes[: len(hidden)], random))
            parts.append(scenes[len(hidden) :])
        if self.imprints is not None:
            parts.append(self.imprints.draw(recipe.styles * imprinted, recipe.styles * imprinted_hidden, random))
        batch = torch.cat(parts)
        batch = low_pass(batch, recipe.low_pass) if recipe.low_pass else batch
        labels = nn.functional.pad(of_shown, (0, len(batch) - len(of_shown)), value=UNLABELLED)
        return StudentImages(batch.contiguous(memory_format=torch.channels_last), labels, len(of_shown))

    def _twin_interventions(self, recipe: Recipe, random: torch.Generator) -> StructuralCausalModel:
        """Contents under M styles, where content n + N / 2 has the class and the styles of content n.

        Twins differ in the variation inside the class alone, so that it can be asked to show.
        """
        half = recipe.generator_contents // 2
        drawn = self.model.sample(CONTENT, 2 * half, random)
        content = Content.of_classes(drawn.labels[:half].repeat(2), drawn.variation)
        style = self.model.sample(STYLE, recipe.styles * half, random)
        twin_style = style.unflatten(0, (recipe.styles, half)).repeat(1, 2, 1).flatten(0, 1)
        return self.model.do(content=content.repeat(recipe.styles), style=twin_style)

    def _variation_loss(self, variation: Tensor, images: Tensor, middle: Tensor, styles: int) -> Tensor:
        """Mode seeking over twins, in the picture and in the features half way through P."""
        scale = 1.0 if self._middle is None else self.statistics[self._middle][1].mean().sqrt()
        causes = _twins(variation, styles)
        in_features = mode_seeking_loss(causes, _twins(middle / scale, styles))
        return mode_seeking_loss(causes, _twins(images, styles)) + in_features


def _twins(values: Tensor, styles: int) -> tuple[Tensor, Tensor]:
    """(M * N, ...) under twin interventions -> each content beside its twin, (M * N / 2, ...) both."""
    first, second = values.unflatten(0, (styles, -1)).chunk(2, 1)
    return first.flatten(0, 1), second.flatten(0, 1)
