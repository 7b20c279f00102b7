"""What Q learns from a batch: to answer as P does, across styles, with P's features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from causal_dfq.causal.analysis import activation_map
from causal_dfq.causal.discrepancy import (
    contrastive_discrepancy,
    interventional_discrepancy,
    matching_discrepancy,
    style_sensitivity,
)
from causal_dfq.training.budget import Recipe
from causal_dfq.training.views import NetworkViews, PretrainedView

UNLABELLED = -1


@dataclass(frozen=True)
class StudentImages:
    """Images (N, C, H, W) that Q learns on, and their classes (N,): `UNLABELLED` where they have none.

    The first `intervened` are contents under styles, style by style.
    """

    images: Tensor
    labels: Tensor
    intervened: int


@dataclass(frozen=True)
class StudentBatch:
    """Images, and what P makes of them."""

    drawn: StudentImages
    pretrained: PretrainedView

    @property
    def images(self) -> Tensor:
        """(N, C, H, W)."""
        return self.drawn.images


def student_loss(views: NetworkViews, batch: StudentBatch, recipe: Recipe) -> tuple[Tensor, dict[str, Tensor]]:
    """Q's loss on a batch, and its parts and measured quantities, all scalars.

    Source: the losses of docs/method.md, each with its own ([paper], [notes], [ours]) where it is defined.
    """
    p, q = batch.pretrained, views.quantized_view(batch.images, batch.pretrained.features)
    squared_temperature = recipe.temperature**2
    matching = matching_discrepancy(p.logits, q.logits, recipe.temperature)
    loss = recipe.matching_weight * squared_temperature * matching
    measured = {"matching_loss": matching, "feature_loss": q.feature_error}
    if batch.drawn.intervened and recipe.styles > 1:
        # What a scene covers is not the content's: the causal losses see the fully shown images alone.
        by_style_p, by_style_q, embedding_p, embedding_q = (
            values[: batch.drawn.intervened].unflatten(0, (recipe.styles, -1))
            for values in (p.logits, q.logits, p.embedding, q.embedding)
        )
        discrepancy = interventional_discrepancy(by_style_p, by_style_q, recipe.temperature)
        contrastive = contrastive_discrepancy(embedding_p, embedding_q, recipe.contrastive_tau)
        loss = loss + recipe.discrepancy_weight * squared_temperature * discrepancy
        loss = loss + recipe.contrastive_weight * contrastive
        with torch.no_grad():
            measured |= {
                "contrastive_loss": contrastive,
                "discrepancy": interventional_discrepancy(by_style_p, by_style_q),
                "sensitivity_pretrained": style_sensitivity(by_style_p),
                "sensitivity_quantized": style_sensitivity(by_style_q),
            }
    loss = loss + recipe.feature_weight * q.feature_error
    if recipe.label_weight:
        measured["label_loss"] = label_loss(q.logits, batch.drawn.labels, p.logits, recipe.label_confidence)
        loss = loss + recipe.label_weight * measured["label_loss"]
    if recipe.attention_weight:
        importance = views.class_importance(batch.images, p.logits.argmax(1))
        if importance is not None and q.attended is not None:
            measured["attention_loss"] = attention_loss(*importance, q.attended)
            loss = loss + recipe.attention_weight * measured["attention_loss"]
    measured["agreement"] = (q.logits.argmax(1) == p.logits.argmax(1)).float().mean()
    return loss, {"student_loss": loss, **measured}


def label_loss(logits: Tensor, labels: Tensor, pretrained: Tensor, confidence: float) -> Tensor:
    """Mean cross entropy (N, K) against the labels (N,) of the images that have one which P believes.

    P must give the label at least the probability `confidence`; 0 of no image. Source: GDFQ (Xu et al., ECCV 2020),
    eq. 8; that hard labels count only where P is confident, after SynQ (ICLR 2025).
    """
    known = labels.clamp_min(0)
    believed = pretrained.float().softmax(1).gather(1, known[:, None])[:, 0] >= confidence
    counted = (labels != UNLABELLED) & believed
    each = functional.cross_entropy(logits.float(), known, reduction="none")
    return torch.where(counted, each, 0.0).sum() / counted.sum().clamp_min(1)


def attention_loss(features: Tensor, importance: Tensor, attended: Tensor) -> Tensor:
    """How far Q looks elsewhere than P: mean over images of |a / |a| - b / |b||^2, class activation maps a, b.

    a = relu(sum_c w_c F_c) of P's features (N, C, h, w) with P's importance w (N, C, 1, 1); b the same of Q's with P's
    importance. Source: alignment of class activation maps after SynQ (ICLR 2025); P's importance for both, so that
    no second derivative is needed [ours].
    """
    maps = [activation_map(values, importance).flatten(1) for values in (features, attended)]
    a, b = (functional.normalize(each, dim=1) for each in maps)
    return (a - b).square().sum(1).mean()
