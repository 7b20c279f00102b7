"""One step size for an addition's summands and its sum, where that costs less than one for each.

A runtime adds what it has rounded, then rounds the sum. Where all three step sizes are equal, the sum of
the codes is a code already: a residual stream passes from block to block without being rounded again. [ours]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from causal_dfq.network.operations import CLIPPING_ACTIVATIONS, aten, attribute
from causal_dfq.quantizer.affine import integer_range
from causal_dfq.quantizer.modules import ActivationQuantizer
from causal_dfq.quantizer.placement import ACTIVATION_QUANTIZERS

_CANDIDATES = 5


@dataclass(frozen=True)
class Addition:
    """The names of the quantizers of both summands and of their sum."""

    summands: tuple[str, str]
    total: str

    @property
    def members(self) -> tuple[str, str, str]:
        """All three quantizers."""
        return (*self.summands, self.total)


def additions(quantized: fx.GraphModule) -> list[Addition]:
    """The additions of equally shaped tensors whose summands and sum have a quantizer each, in order."""
    found = []
    for node in quantized.graph.nodes:
        summands, total = _quantizers_around(node)
        if total is not None and len({*summands, total}) == 3:
            found.append(Addition((summands[0], summands[1]), total))
    return found


@torch.no_grad()
def share_step_sizes(quantized: fx.GraphModule, error: Callable[[], float]) -> list[list[str]]:
    """Gives additions one step size where that lowers an error; returns the quantizers that share one.

    Additions are tried in order, each with those merged before it that it touches, at a few step sizes
    between the members' own.

    Args:
        quantized: with calibrated activation quantizers.
        error: of the quantized network as it stands.
    """
    groups: dict[str, list[str]] = {}
    lowest = error()
    for addition in additions(quantized):
        group = list(dict.fromkeys(n for member in addition.members for n in groups.get(member, [member])))
        members = [_quantizer(quantized, name) for name in group]
        # Copies: a step size that went through its logarithm again would not be the same to the last bit.
        states = [copy.deepcopy(member.state_dict()) for member in members]
        own = [_grid(member) for member in members]
        best: list[tuple[float, float]] | None = None
        for scale in _between([scale for scale, _ in own]):
            grids = [_rescaled(member, grid, scale) for member, grid in zip(members, own, strict=True)]
            _set(members, grids)
            tried = error()
            if tried < lowest:
                best, lowest = grids, tried
        if best is None:
            for member, state in zip(members, states, strict=True):
                member.load_state_dict(state)
        else:
            _set(members, best)
            groups |= dict.fromkeys(group, group)
    shared = list({id(group): group for group in groups.values()}.values())
    numbers = {name: number for number, name in enumerate(_quantizers(quantized))}
    leaders = torch.arange(len(numbers))
    for group in shared:
        places = [numbers[name] for name in group]
        leaders[places] = min(places)
    tie_step_sizes(quantized, leaders)
    return shared


def step_size_leaders(quantized: fx.GraphModule) -> Tensor:
    """For each activation quantizer the number of the first one that has its step size, int64 (quantizers,)."""
    step_sizes = [quantizer.log_scale for quantizer in _quantizers(quantized).values()]
    identities = [id(step_size) for step_size in step_sizes]
    return torch.tensor([identities.index(identity) for identity in identities], dtype=torch.int64)


def tie_step_sizes(quantized: fx.GraphModule, leaders: Tensor) -> None:
    """Ties what `step_size_leaders` found tied."""
    quantizers = list(_quantizers(quantized).values())
    for quantizer, leader in zip(quantizers, leaders.tolist(), strict=True):
        quantizer.log_scale = quantizers[leader].log_scale


def _grid(quantizer: ActivationQuantizer) -> tuple[float, float]:
    return float(quantizer.scale.detach()), float(quantizer.zero_point.detach())


def _rescaled(quantizer: ActivationQuantizer, grid: tuple[float, float], scale: float) -> tuple[float, float]:
    """The grid of another step size around the same middle; where nothing is negative, from 0 again."""
    own, zero_point = grid
    if zero_point == 0:
        return scale, 0.0
    _, highest = integer_range(quantizer.bits, is_signed=False)
    middle = (highest / 2 - zero_point) * own
    return scale, float(min(max(round(highest / 2 - middle / scale), 1), highest))


def _set(members: list[ActivationQuantizer], grids: list[tuple[float, float]]) -> None:
    for member, grid in zip(members, grids, strict=True):
        member.set_range(*grid)


def _between(scales: list[float]) -> list[float]:
    low, high = torch.tensor([min(scales), max(scales)]).log().tolist()
    return [float(scale) for scale in torch.linspace(low, high, _CANDIDATES).exp()]


def _quantizers(quantized: fx.GraphModule) -> dict[str, ActivationQuantizer]:
    """All activation quantizers by name, in order."""
    return {name: module for name, module in quantized.named_modules() if isinstance(module, ActivationQuantizer)}


def _quantizer(quantized: fx.GraphModule, name: str) -> ActivationQuantizer:
    module = attribute(quantized, name)
    assert isinstance(module, ActivationQuantizer)
    return module


def _quantizers_around(node: fx.Node) -> tuple[list[str], str | None]:
    """The quantizers of an addition's two tensors and of its result."""
    if node.op != "call_function" or node.target != aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return [], None
    terms = [term for term in node.args if isinstance(term, fx.Node) and _is_quantizer(term)]
    shapes = {tuple(value.meta["val"].shape) for value in (*terms, node)}
    if len(terms) != 2 or len(shapes) != 1:
        return [], None
    readers = [user for user in _clipped(node).users if _is_quantizer(user)]
    return [str(term.target) for term in terms], str(readers[0].target) if len(readers) == 1 else None


def _is_quantizer(node: fx.Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith(ACTIVATION_QUANTIZERS + ".")


def _clipped(node: fx.Node) -> fx.Node:
    """The clipping activation that alone reads a sum, else the sum."""
    users = list(node.users)
    is_clipped = len(users) == 1 and users[0].op == "call_function" and users[0].target in CLIPPING_ACTIVATIONS
    return users[0] if is_clipped else node
