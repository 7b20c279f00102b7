"""BatchNorm folded into the convolution or linear layer before it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from causal_dfq.errors import CaptureError
from causal_dfq.network.operations import (
    LINEAR,
    attribute,
    has_running_statistics,
    is_weight_layer,
    module_path,
    weight_layer_nodes,
)

LAYERS = "layers"


def fold_batch_norm(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the captured graph in which every weight layer owns its weight and bias.

    The layer called `node` reads `layers.node.weight` and `layers.node.bias`; a BatchNorm that is the
    only reader of a layer is folded into it, unless it takes its statistics from the batch. A weight used
    by two layers becomes two.

    Raises:
        CaptureError: the weight or bias of a layer depends on the image.
    """
    folded = fx.GraphModule(module, copy.deepcopy(module.graph))
    _make_room(folded)
    layers = nn.Module()
    for node in weight_layer_nodes(folded.graph):
        weight, bias = _weight_and_bias(folded, node)
        norm = _following_norm(node)
        if norm is not None:
            weight, bias = _absorb(folded, norm, weight, bias)
            norm.replace_all_uses_with(node)
            folded.graph.erase_node(norm)
        layers.add_module(node.name, _layer(weight, bias))
        _read_own_parameters(folded, node)
    folded.add_module(LAYERS, layers)
    for node in weight_layer_nodes(folded.graph):
        node.meta["val"] = node.meta["val"].float()
    folded.graph.eliminate_dead_code()
    return fx.GraphModule(folded, folded.graph)


def _make_room(module: fx.GraphModule) -> None:
    """Renames what the user's network calls `layers`."""
    if not hasattr(module, LAYERS):
        return
    name = f"own_{LAYERS}"
    while hasattr(module, name):
        name = f"own_{name}"
    setattr(module, name, getattr(module, LAYERS))
    delattr(module, LAYERS)
    for node in module.graph.nodes:
        first, separator, rest = str(node.target).partition(".")
        if node.op == "get_attr" and first == LAYERS:
            node.target = f"{name}{separator}{rest}"


def _weight_and_bias(module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    weight = _parameter(module, node, node.args[1])
    bias_node = node.args[2] if len(node.args) > 2 else None
    return weight, torch.zeros(weight.shape[0]) if bias_node is None else _parameter(module, node, bias_node)


def _parameter(module: fx.GraphModule, node: fx.Node, source: object) -> Tensor:
    if not isinstance(source, fx.Node) or not _is_own(source):
        raise CaptureError(
            f"the layer {module_path(node)!r} computes its weight or bias from the image: there is no weight to round; "
            "replace the layer in the network by one with a weight of its own"
        )
    parameter: Tensor = attribute(module, str(source.target))
    return parameter.detach().clone()


def _following_norm(node: fx.Node) -> fx.Node | None:
    # Of tokens (N, T, D), a BatchNorm takes T for the channels, and a linear layer writes D.
    if len(node.users) != 1 or (node.target == LINEAR and node.meta["val"].ndim != 2):
        return None
    user = next(iter(node.users))
    return user if has_running_statistics(user) and has_own_scale(user) else None


def has_own_scale(norm: fx.Node) -> bool:
    """Whether a BatchNorm's scale and shift are parameters, where it has any."""
    return all(source is None or _is_own(source) for source in norm.args[1:3])


def _is_own(source: object) -> bool:
    return isinstance(source, fx.Node) and source.op == "get_attr"


def norm_affine(module: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """The multiplier and the offset, each (C,), that a BatchNorm in evaluation mode applies."""
    gamma, beta, mean, variance = (
        attribute(module, str(argument.target)) if isinstance(argument, fx.Node) else None
        for argument in norm.args[1:5]
    )
    assert mean is not None
    assert variance is not None
    epsilon = float(norm.args[7])  # type: ignore[arg-type]
    multiplier = torch.rsqrt(variance.double() + epsilon)
    if gamma is not None:
        multiplier = multiplier * gamma.double()
    offset = -mean.double() * multiplier
    if beta is not None:
        offset = offset + beta.double()
    return multiplier.detach(), offset.detach()


def channel_moments(captured: fx.GraphModule) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The name of each layer with a BatchNorm of its own behind it, and mean and deviation (C,) of what that writes.

    A BatchNorm's output has its shift for a mean and the size of its scale for a deviation, on the images that its
    statistics are of. Those without a scale and shift are left out.
    """
    for node in weight_layer_nodes(captured.graph):
        norm = _following_norm(node)
        if norm is not None and all(isinstance(source, fx.Node) for source in norm.args[1:3]):
            scale, shift = (attribute(captured, str(source.target)).detach().double() for source in norm.args[1:3])  # type: ignore[union-attr]
            yield node.name, shift, scale.abs()


def _absorb(module: fx.GraphModule, norm: fx.Node, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    multiplier, offset = norm_affine(module, norm)
    shape = (-1,) + (1,) * (weight.ndim - 1)
    return (weight.double() * multiplier.view(shape)).float(), (bias.double() * multiplier + offset).float()


def _layer(weight: Tensor, bias: Tensor) -> nn.Module:
    layer = nn.Module()
    if weight.ndim == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(bias)
    return layer


def _read_own_parameters(module: fx.GraphModule, node: fx.Node) -> None:
    assert is_weight_layer(node)
    with module.graph.inserting_before(node):
        weight = module.graph.create_node("get_attr", f"{LAYERS}.{node.name}.weight")
        bias = module.graph.create_node("get_attr", f"{LAYERS}.{node.name}.bias")
    node.args = (node.args[0], weight, bias, *node.args[3:])
