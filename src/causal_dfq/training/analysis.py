"""The causal analysis of a run: P and Q under the same interventions on style, on images that no step trains on.

Where no generator makes the images there is nothing to intervene on: how alike both networks see is measured alone, on
some of the images that Q learns on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from causal_dfq.causal.analysis import content_accuracy, grad_cam, linear_cka, map_overlap
from causal_dfq.causal.discrepancy import interventional_discrepancy, style_sensitivity
from causal_dfq.causal.graph import CONTENT, IMAGE, style_interventions
from causal_dfq.network.operations import input_name, weight_layer_nodes, with_outputs
from causal_dfq.training.equilibrium import Equilibrium, Metrics
from causal_dfq.training.generator_training import GeneratorTraining
from causal_dfq.training.views import embedding

STYLES = 4
PREFIX = "analysis_"


@dataclass(frozen=True)
class _Sight:
    """What a network makes of images (N, C, H, W): logits (N, K), embedding (N, D), Grad-CAM (N, h, w) if any."""

    logits: Tensor
    embedding: Tensor
    attention: Tensor | None


def analyse(run: Equilibrium) -> Metrics:
    """Measures P and Q under do(style), about as many images as a student batch, `STYLES` styles a content.

    Without a generator: both on some of the images that Q learns on, for the class that P sees. The draws come from
    the seed of the run alone: training goes on as if nothing had been measured, and every analysis of a run sees the
    same images. Names start with `PREFIX`.
    """
    if isinstance(run.synthesis, GeneratorTraining):
        found = _under_interventions(run, run.synthesis)
    else:
        # No more than synthesis sends through P backwards at a time.
        images = run.sensitivity_images()[: run.recipe.pool_batch]
        with torch.no_grad():
            labels = run.views.pretrained_logits(images).argmax(1)
        found = _likeness(*_both(run, images, labels))
    return {PREFIX + name: float(value) for name, value in found.items()}


def _under_interventions(run: Equilibrium, synthesis: GeneratorTraining) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(run.seed)
    contents = max(4, run.recipe.student_images // STYLES)
    content = synthesis.model.sample(CONTENT, contents, random)
    intervened = style_interventions(synthesis.model, content, STYLES, random)
    with torch.no_grad(), run.views.autocast():
        images = intervened.sample(IMAGE, 0, random)
    p, q = _both(run, images, content.labels.repeat(STYLES))
    by_style_p, by_style_q = (sight.logits.unflatten(0, (STYLES, -1)) for sight in (p, q))
    return {
        "discrepancy": interventional_discrepancy(by_style_p, by_style_q),
        "sensitivity_pretrained": style_sensitivity(by_style_p),
        "sensitivity_quantized": style_sensitivity(by_style_q),
        "content_accuracy_pretrained": content_accuracy(by_style_p, content.labels),
        "content_accuracy_quantized": content_accuracy(by_style_q, content.labels),
        **_likeness(p, q),
    }


def _likeness(p: _Sight, q: _Sight) -> dict[str, Tensor]:
    found = {"cka": linear_cka(p.embedding, q.embedding)}
    if p.attention is not None and q.attention is not None:
        found["attention_overlap"] = map_overlap(p.attention, q.attention)
    return found


def _both(run: Equilibrium, images: Tensor, labels: Tensor) -> tuple[_Sight, _Sight]:
    attended = run.views.attended
    p, q = (_look(run, network, attended, images, labels) for network in (run.views.folded, run.views.quantized))
    return p, q


def _look(run: Equilibrium, network: fx.GraphModule, attended: str | None, images: Tensor, labels: Tensor) -> _Sight:
    penultimate = input_name(weight_layer_nodes(network.graph)[-1])
    view = with_outputs(network, [penultimate] if attended is None else [penultimate, attended])
    logits, (last, *maps), gradient = run.views.class_gradient(view, images, labels)
    return _Sight(logits, embedding(last), grad_cam(maps[0], gradient) if maps else None)
