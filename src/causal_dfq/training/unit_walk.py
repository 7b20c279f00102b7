"""Images on their way through P and Q, unit by unit, so that each unit of Q can be fitted to P's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from causal_dfq.network.units import Unit, network_units
from causal_dfq.quantizer.placement import integer_tensors
from causal_dfq.training.feature_error import relative_error
from causal_dfq.training.views import NetworkViews

CHUNK = 128


@dataclass(frozen=True)
class UnitData:
    """What enters a unit in Q, what enters it in P, and what leaves it in P, (N, ...) each."""

    rounded: Tensor
    exact: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Fit:
    """The relative error of a unit's result on the images, before and after it was fitted."""

    before: float
    after: float


UnitFit = Callable[[int, Unit, UnitData], None]


def reconstruction_units(folded: fx.GraphModule) -> list[Unit]:
    """The units of a folded network: between tensors that an integer runtime reads."""
    return network_units(folded, set(integer_tensors(folded.graph)))


class UnitWalk:
    """Fits Q's units in their order, each on what the units before it hand on.

    Args:
        views: P and Q; Q's activation quantizers are calibrated.
        images: (N, C, H, W).
        fit: fits the unit of a number in place.
    """

    def __init__(self, views: NetworkViews, images: Tensor, fit: UnitFit) -> None:
        self._views, self._fit = views, fit
        self.units = reconstruction_units(views.folded)
        self.done = 0
        self._exact = self._rounded = images

    def skip_to(self, unit: int) -> None:
        """Hands the images on through units that are fitted already."""
        while self.done < unit:
            self._hand_on(self._targets())

    def fit_next(self) -> Fit:
        """Fits the next unit of Q in place."""
        targets = self._targets()
        before = self._error(targets)
        self._fit(self.done, self.units[self.done], UnitData(self._rounded, self._exact, targets))
        after = self._error(targets)
        self._hand_on(targets)
        return Fit(before, after)

    @torch.no_grad()
    def _targets(self) -> Tensor:
        return self._through(self._views.folded, self._exact)

    @torch.no_grad()
    def _hand_on(self, targets: Tensor) -> None:
        self._rounded = self._through(self._views.quantized, self._rounded)
        self._exact = targets
        self.done += 1

    @torch.no_grad()
    def _error(self, targets: Tensor) -> float:
        return float(relative_error(self._through(self._views.quantized, self._rounded), targets))

    def _through(self, network: fx.GraphModule, values: Tensor) -> Tensor:
        """What the next unit of P or Q makes of values."""
        unit = self.units[self.done]
        part = self._views.part(network, unit.source, unit.result)
        return torch.cat([self._views.through(part, chunk) for chunk in values.split(CHUNK)])
