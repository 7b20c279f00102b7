"""Q unit by unit: each one fitted to P's on what the units before it hand on, the rounding of its weights learned.

Images are drawn once for all units. Source: Nagel et al., "AdaRound" (ICML 2020), Li et al.,
"BRECQ" (ICLR 2021) and Wei et al., "QDrop" (ICLR 2022); step sizes of weights learned beside the rounding after
GENIE (Jeon et al., CVPR 2023); schedules and units from the graph [ours].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from causal_dfq.fusion import like_in_memory
from causal_dfq.network.fold import LAYERS
from causal_dfq.network.units import Unit
from causal_dfq.quantizer.modules import ActivationQuantizer, WeightQuantizer
from causal_dfq.quantizer.placement import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from causal_dfq.quantizer.rounding import LearnedRounding
from causal_dfq.training.feature_error import relative_error
from causal_dfq.training.unit_walk import UnitData, UnitWalk
from causal_dfq.training.views import NetworkViews

_REPLACED = "replaced_quantizers"


@dataclass(frozen=True)
class Schedule:
    """How a unit is fitted.

    Args:
        iterations: steps of each unit.
        batch: images a step.
        rounding_travel: how far a rounding's logit can go in all steps; it starts between -2.4 and 2.4.
        step_size_lr, zero_point_lr: as in `Recipe`.
        dropped: the share of activations that pass unrounded, as in QDrop.
        decision_weight: of the sum that drives every weight to a choice.
        undriven: the share of steps before that sum counts.
        sharpness: of that sum, first and last.
    """

    iterations: int
    batch: int = 32
    rounding_travel: float = 10.0
    step_size_lr: float = 1e-3
    zero_point_lr: float = 1e-2
    dropped: float = 0.5
    decision_weight: float = 0.01
    undriven: float = 0.2
    sharpness: tuple[float, float] = (20.0, 2.0)

    @property
    def rounding_lr(self) -> float:
        """First learning rate of the logits: Adam moves by about the rate, which falls as a cosine."""
        return 2 * self.rounding_travel / self.iterations

    def sharpness_at(self, iteration: int) -> float | None:
        """From the first to the last in a straight line; None where the sum does not count yet."""
        position = (iteration / self.iterations - self.undriven) / (1 - self.undriven)
        if position < 0:
            return None
        first, last = self.sharpness
        return first + (last - first) * position


class DroppedQuantizer(nn.Module):
    """An activation quantizer that lets a random share of the values pass unrounded (QDrop)."""

    def __init__(self, quantizer: ActivationQuantizer, share: float, random: torch.Generator) -> None:
        super().__init__()
        self.quantizer = quantizer
        self._share, self._random = share, random

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape -> the same, most of them on the grid."""
        return mixed(self.quantizer(values), values, self._share, self._random)


def mixed(values: Tensor, others: Tensor, share: float, random: torch.Generator) -> Tensor:
    """`values`, a random share of them replaced by those of `others`."""
    if share == 0:
        return values
    drawn = torch.rand(values.shape, generator=random).to(values.device)
    # A choice lies in memory as its mask does.
    return torch.where(like_in_memory(drawn, values) < share, others, values)


def reconstruction(views: NetworkViews, images: Tensor, schedule: Schedule, seed: int) -> UnitWalk:
    """Fits Q's units on images (N, C, H, W), one a step; `seed` draws the batches and what is dropped."""

    def fit(number: int, unit: Unit, data: UnitData) -> None:
        fit_unit(views, unit, data, schedule, torch.Generator().manual_seed(seed + number))

    return UnitWalk(views, images, fit)


def fit_unit(
    views: NetworkViews,
    unit: Unit,
    data: UnitData,
    schedule: Schedule,
    random: torch.Generator,
) -> None:
    """Learns the rounding of a unit's weights and the step sizes around them; Q's weights become what was chosen."""
    quantized = views.quantized
    part = views.part(quantized, unit.source, unit.result)
    roundings = _with_learned_rounding(part, quantized)
    _with_dropping(part, schedule.dropped, random)
    if not any(isinstance(module, WeightQuantizer | ActivationQuantizer) for module in part.modules()):
        return
    optimizer = _optimizer(part, roundings, schedule)
    channels = data.targets.shape[1]
    for iteration in range(schedule.iterations):
        chosen = torch.randint(len(data.rounded), (schedule.batch,), generator=random).to(data.rounded.device)
        entering = mixed(data.rounded[chosen], data.exact[chosen], schedule.dropped, random)
        result = views.through(part, entering)
        # The squared error summed over channels, in units of the target's mean square.
        loss = channels * relative_error(result, data.targets[chosen])
        sharpness = schedule.sharpness_at(iteration)
        if sharpness is not None:
            exponent = torch.tensor(sharpness)
            for rounding in roundings.values():
                loss = loss + schedule.decision_weight * rounding.undecided(exponent)
        _set_rates(optimizer, 0.5 * (1 + math.cos(math.pi * iteration / schedule.iterations)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    weights = dict(quantized.get_submodule(LAYERS).named_children())
    with torch.no_grad():
        for name, rounding in roundings.items():
            weight = weights[name].weight
            assert isinstance(weight, nn.Parameter)
            weight.copy_(rounding.decided())
    quantized.zero_grad(set_to_none=True)


def _with_learned_rounding(part: fx.GraphModule, quantized: fx.GraphModule) -> dict[str, LearnedRounding]:
    """Puts `LearnedRounding` in the place of the part's weight quantizers; by name of the layer."""
    part.add_module(_REPLACED, nn.Module())
    replaced = part.get_submodule(_REPLACED)
    found = {}
    for node in _calls(part, WEIGHT_QUANTIZERS):
        name = str(node.target).removeprefix(WEIGHT_QUANTIZERS + ".")
        quantizer = quantized.get_submodule(str(node.target))
        weight = quantized.get_submodule(f"{LAYERS}.{name}").weight
        assert isinstance(quantizer, WeightQuantizer)
        assert isinstance(weight, Tensor)
        found[name] = LearnedRounding(weight, quantizer)
        replaced.add_module(f"weight_{name}", found[name])
        node.target = f"{_REPLACED}.weight_{name}"
    part.recompile()
    return found


def _with_dropping(part: fx.GraphModule, share: float, random: torch.Generator) -> None:
    replaced = part.get_submodule(_REPLACED)
    for node in _calls(part, ACTIVATION_QUANTIZERS):
        name = str(node.target).removeprefix(ACTIVATION_QUANTIZERS + ".")
        quantizer = part.get_submodule(str(node.target))
        assert isinstance(quantizer, ActivationQuantizer)
        replaced.add_module(f"activation_{name}", DroppedQuantizer(quantizer, share, random))
        node.target = f"{_REPLACED}.activation_{name}"
    part.recompile()


def _calls(part: fx.GraphModule, kind: str) -> list[fx.Node]:
    return [node for node in part.graph.nodes if node.op == "call_module" and str(node.target).startswith(kind + ".")]


def _optimizer(
    part: fx.GraphModule, roundings: dict[str, LearnedRounding], schedule: Schedule
) -> torch.optim.Optimizer:
    step_sizes: dict[int, Tensor] = {}
    zero_points: list[Tensor] = []
    for module in part.modules():
        if isinstance(module, WeightQuantizer | ActivationQuantizer):
            step_sizes[id(module.log_scale)] = module.log_scale
        if isinstance(module, ActivationQuantizer):
            zero_points.append(module.zero_point)
    groups = [
        {"params": [rounding.logit for rounding in roundings.values()], "base_lr": schedule.rounding_lr},
        {"params": list(step_sizes.values()), "base_lr": schedule.step_size_lr},
        {"params": list({id(point): point for point in zero_points}.values()), "base_lr": schedule.zero_point_lr},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]])


def _set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = share * group["base_lr"]
