"""What rounding a single layer does to the network's answers: the price of its bits, without any data. [ours]"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from causal_dfq.causal.discrepancy import matching_discrepancy
from causal_dfq.network.continuation import Continuation
from causal_dfq.network.fold import LAYERS
from causal_dfq.network.operations import attribute
from causal_dfq.precision import float32_convolutions
from causal_dfq.quantizer.bit_allocation import CANDIDATE_BITS, LayerChoice, allocate_bits
from causal_dfq.quantizer.modules import WeightQuantizer
from causal_dfq.quantizer.placement import WEIGHT_QUANTIZERS
from causal_dfq.quantizer.second_order import joined
from causal_dfq.training.layer_rounding import RoundingSettings, moments_in_p, parameters_of, rounded_on_own_grid
from causal_dfq.training.views import NetworkViews

_CHUNK = 128


def quantized_layers(views: NetworkViews) -> Iterator[tuple[str, WeightQuantizer]]:
    """Q's layers whose weights are rounded, in their order, and the quantizers of these."""
    for name, quantizer in getattr(views.quantized, WEIGHT_QUANTIZERS, nn.Module()).named_children():
        if isinstance(quantizer, WeightQuantizer):
            yield name, quantizer


@torch.no_grad()
def layer_sensitivities(
    views: NetworkViews, images: Tensor, bits: Sequence[int] | None = None
) -> dict[str, dict[int, float]]:
    """For each layer and width, mean KL(p_P || p_P with this layer's weight alone rounded) over images (N, C, H, W).

    The images are those that Q learns on: contents under interventions on style where there is a generator for them,
    imprinted scenes, scenes. Weights are rounded to the nearest code of a
    symmetric grid for each output channel. Without `bits` each layer is measured at its own width.
    """
    found: dict[str, dict[int, float]] = {}
    answers = _Answers(views, images)
    for name, quantizer in quantized_layers(views):
        weight = attribute(views.folded, f"{LAYERS}.{name}.weight")
        answers.advance_to(name)
        kept = weight.clone()
        found[name] = {}
        for width in bits or [quantizer.bits]:
            weight.copy_(WeightQuantizer(kept, width, is_symmetric=True)(kept))
            found[name][width] = answers.divergence()
        weight.copy_(kept)
    return found


@torch.no_grad()
def closed_form_sensitivities(
    views: NetworkViews, images: Tensor, others: Tensor, bits: Sequence[int], seed: int
) -> dict[str, dict[int, float]]:
    """As `layer_sensitivities`, each layer alone rounded in closed form, with the error that this leaves.

    The nearest code exaggerates what few bits cost: errors of neighbouring inputs make up for each other, most where a
    layer has many. What a layer makes up for on the images that it is rounded on it may lose on others.

    Args:
        images: (N, C, H, W), on which answers are compared.
        others: (M, C, H, W), none of them among the images, on which layers are rounded.
        seed: of the places that are looked at.
    """
    found: dict[str, dict[int, float]] = {}
    settings = RoundingSettings()
    answers = _Answers(views, images)
    for number, (name, _) in enumerate(quantized_layers(views)):
        weight, bias = parameters_of(views.folded.get_submodule(f"{LAYERS}.{name}"))
        answers.advance_to(name)
        kept = weight.clone(), bias.clone()
        found[name] = {}
        moments = None
        if weight[0].numel() <= settings.largest_fan_in:
            random = torch.Generator().manual_seed(seed + number)
            with views.in_float32():
                moments = moments_in_p(views, name, others, settings.samples_of(weight[0].numel()), random)
        for width in bits:
            quantizer = WeightQuantizer(kept[0], width, is_symmetric=True)
            if moments is None:
                weight.copy_(quantizer(kept[0]))
            else:
                exact_weight = joined(*kept, len(moments.own))
                rounded = rounded_on_own_grid(quantizer, exact_weight, weight.shape, moments, settings.damping)
                weight.copy_(rounded[:, :, :-1].reshape(weight.shape))
                bias.copy_(rounded[:, :, -1].reshape(bias.shape))
            found[name][width] = answers.divergence()
        weight.copy_(kept[0])
        bias.copy_(kept[1])
    return found


@torch.no_grad()
def choose_weight_bits(views: NetworkViews, images: Tensor, others: Tensor, budget: int, seed: int) -> None:
    """Gives each layer of Q the bits with which all weights take at most `budget` bytes and answers move least.

    Args:
        images, others, seed: as `closed_form_sensitivities` takes them.

    Raises:
        ConfigError: the budget is too small.
    """
    costs = closed_form_sensitivities(views, images, others, CANDIDATE_BITS, seed)
    weights = {name: attribute(views.quantized, f"{LAYERS}.{name}.weight") for name in costs}
    layers = [LayerChoice(name, weights[name].numel(), costs[name]) for name in costs]
    chosen = allocate_bits(layers, budget)
    for name, quantizer in quantized_layers(views):
        quantizer.use_bits(weights[name], chosen[name])


class _Answers:
    """P's answers to images (N, C, H, W), and how far they move as one layer after the other changes."""

    def __init__(self, views: NetworkViews, images: Tensor) -> None:
        self._continuation = Continuation(views.folded, images, _CHUNK)
        self._exact = self._now()

    def advance_to(self, layer: str) -> None:
        """The next layer that will change."""
        with float32_convolutions():
            self._continuation.advance_to(layer)

    def divergence(self) -> float:
        """Mean KL(p_P || p_P as its weights are now)."""
        return float(matching_discrepancy(self._exact, self._now()))

    def _now(self) -> Tensor:
        # Outside of autocast, in float32: bfloat16 errs by as much as a grid of 8 bits does.
        with float32_convolutions():
            return self._continuation.result()
