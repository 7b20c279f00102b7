"""P's BatchNorms as synthesis runs them: the input's statistics, the normalization and the clipping in one. [ours]

The BatchNorm loss reads every input of a BatchNorm, which the forward pass reads anyway, and its gradient meets
that of the forward pass there. With a compiler each way is one pass over memory.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from causal_dfq.fusion import (
    Formula,
    by_place,
    constant,
    from_memory_order,
    is_fusing,
    like_in_memory,
    with_gradient_in_channels_last,
)
from causal_dfq.network.operations import UNCLIPPED, aten, batch_norm_nodes, clip, clipping_bounds
from causal_dfq.synthesis.statistics import batch_statistics, statistics_gradient, statistics_of_sums


def _statistics(values: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, each (C,), of values (N, P, C), by sums over each image: images are what threads share."""
    distance = values - centre
    return statistics_of_sums(distance.sum(1), (distance * distance).sum(1), centre, values.shape[0] * values.shape[1])


def _passed(gradient: Tensor, normalized: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The gradient where nothing was clipped."""
    return torch.where((normalized > low) & (normalized < high), gradient.float(), 0.0)


@Formula
def _normalize(
    features: Tensor, multiplier: Tensor, offset: Tensor, centre: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, P, C), the others (C,): the result, and the features' mean and variance."""
    values = features.float()
    clipped = torch.clamp(values * multiplier + offset, low, high)
    return clipped.to(features.dtype), *_statistics(values, centre)


@Formula
def _normalize_and_add(
    features: Tensor, residual: Tensor, multiplier: Tensor, offset: Tensor, centre: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    values = features.float()
    clipped = torch.clamp(values * multiplier + offset + residual.float(), low, high)
    return clipped.to(features.dtype), *_statistics(values, centre)


@Formula
def _gradient(
    gradient: Tensor,
    features: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    low: Tensor,
    high: Tensor,
    slope: Tensor,
    shift: Tensor,
) -> Tensor:
    values = features.float()
    passed = _passed(gradient, values * multiplier + offset, low, high)
    return (passed * multiplier + (values * slope + shift)).to(features.dtype)


@Formula
def _gradients_of_sum(
    gradient: Tensor,
    features: Tensor,
    residual: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    low: Tensor,
    high: Tensor,
    slope: Tensor,
    shift: Tensor,
) -> tuple[Tensor, Tensor]:
    """With respect to the features, and to the residual."""
    values = features.float()
    passed = _passed(gradient, values * multiplier + offset + residual.float(), low, high)
    return (passed * multiplier + (values * slope + shift)).to(features.dtype), passed.to(features.dtype)


class _MeasuredNorm(torch.autograd.Function):
    """Gives the clipped normalized features, and mean and variance of the features by channel."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, affine: tuple[Tensor, Tensor], centre: Tensor, bounds: tuple[Tensor, Tensor]
    ) -> Any:
        normalized, mean, variance = _normalize(by_place(features), *affine, centre, *bounds)
        ctx.save_for_backward(features, mean)
        ctx.affine, ctx.bounds = affine, bounds
        return from_memory_order(normalized, features), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, mean = ctx.saved_tensors
        gradient = by_place(like_in_memory(gradients[0], features))
        line = statistics_gradient(mean, gradients[1], gradients[2], features.numel() // features.shape[1])
        to_features = _gradient(gradient, by_place(features), *ctx.affine, *ctx.bounds, *line)
        return from_memory_order(to_features, features), None, None, None


class _MeasuredNormAndSum(torch.autograd.Function):
    """The same with a residual added before the clipping."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        residual: Tensor,
        affine: tuple[Tensor, Tensor],
        centre: Tensor,
        bounds: tuple[Tensor, Tensor],
    ) -> Any:
        places = by_place(features), by_place(residual)
        normalized, mean, variance = _normalize_and_add(*places, *affine, centre, *bounds)
        ctx.save_for_backward(features, residual, mean)
        ctx.affine, ctx.bounds = affine, bounds
        return from_memory_order(normalized, features), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, residual, mean = ctx.saved_tensors
        gradient = by_place(like_in_memory(gradients[0], features))
        line = statistics_gradient(mean, gradients[1], gradients[2], features.numel() // features.shape[1])
        to_features, to_residual = _gradients_of_sum(
            gradient, by_place(features), by_place(residual), *ctx.affine, *ctx.bounds, *line
        )
        return from_memory_order(to_features, features), from_memory_order(to_residual, features), None, None, None


def measured_norm(
    features: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_variance: Tensor,
    epsilon: float,
    bounds: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """A BatchNorm in evaluation mode, an addition and a clipping after it; the parameters are constants.

    Args:
        features: (N, C, ...).
        residual: of the shape of the features; None where nothing is added.
        weight, bias, running_mean, running_variance: (C,).
        epsilon: added to the variance.
        bounds: -inf and inf where nothing is clipped.

    Returns:
        The clipped result, and mean and biased variance (C,) of the features themselves.
    """
    if not is_fusing() or features.ndim != 4:
        mean, variance = batch_statistics(features)
        result = nn.functional.batch_norm(
            features, running_mean, running_variance, weight, bias, training=False, eps=epsilon
        )
        result = result if residual is None else result + residual
        result = clip(result, bounds)
        return (with_gradient_in_channels_last(result) if result.ndim == 4 else result), mean, variance
    with torch.no_grad():
        multiplier = torch.rsqrt(running_variance.float() + epsilon)
        multiplier = multiplier if weight is None else multiplier * weight
        offset = -running_mean * multiplier
        offset = offset if bias is None else offset + bias
    ends = constant(bounds[0], features.device), constant(bounds[1], features.device)
    features = features.contiguous(memory_format=torch.channels_last)
    if residual is None:
        results = _MeasuredNorm.apply(features, (multiplier, offset), running_mean, ends)
    else:
        residual = like_in_memory(residual.to(features.dtype), features)
        results = _MeasuredNormAndSum.apply(features, residual, (multiplier, offset), running_mean, ends)
    normalized, mean, variance = results
    return normalized, mean, variance


def with_statistics(captured: fx.GraphModule) -> fx.GraphModule:
    """A view of P: images -> (logits, [(mean, variance) of each BatchNorm's input], the input of the middle one).

    The middle one of those that have a row for each image: a BatchNorm may see all tokens of all images in a row.
    Parameters are shared with `captured`; without a BatchNorm the list is empty and the last value the logits.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    logits = graph.graph_copy(captured.graph, copies)
    statistics = []
    norms = batch_norm_nodes(graph)
    chosen = middle_norm(graph)
    middle = logits if chosen is None else norms[chosen].args[0]
    for norm in norms:
        last, residual = norm, None
        addition = _only_user(last)
        if addition is not None and _is_plain_addition(addition):
            residual = addition.args[1] if addition.args[0] is norm else addition.args[0]
            last = addition
        clipping = _only_user(last)
        bounds = None if clipping is None else clipping_bounds(clipping)
        if clipping is not None and bounds is not None:
            last = clipping
        with graph.inserting_after(last):
            arguments = (norm.args[0], residual, *norm.args[1:5], norm.args[7], bounds or UNCLIPPED)
            call = graph.call_function(measured_norm, arguments)
        normalized, mean, variance = _unpacked(graph, call)
        normalized.meta = dict(last.meta)
        last.replace_all_uses_with(normalized)
        statistics.append((mean, variance))
        logits = normalized if logits is last else logits
        middle = normalized if middle is last else middle
    graph.output((logits, statistics, middle))
    graph.eliminate_dead_code()
    view = fx.GraphModule(captured, graph)
    view.train(captured.training)
    return view


def middle_norm(graph: fx.Graph) -> int | None:
    """The number of the BatchNorm half way through P, of those that have a row for each image; None without one."""
    images = next(node for node in graph.nodes if node.op == "placeholder")
    norms = enumerate(batch_norm_nodes(graph))
    of_images = [number for number, norm in norms if _rows(norm.args[0]) == _rows(images)]
    return of_images[len(of_images) // 2] if of_images else None


def _rows(node: object) -> int:
    assert isinstance(node, fx.Node)
    return int(node.meta["val"].shape[0])


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_plain_addition(node: fx.Node) -> bool:
    """Whether the node adds two different tensors of one shape."""
    if node.target not in (aten.add.Tensor, aten.add_.Tensor) or node.kwargs or len(node.args) != 2:
        return False
    first, second = node.args
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
        return False
    one, other = first.meta.get("val"), second.meta.get("val")
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape


def _unpacked(graph: fx.Graph, call: fx.Node) -> list[fx.Node]:
    """The three results of a call."""
    nodes = []
    for index in (2, 1, 0):
        with graph.inserting_after(call):
            nodes.append(graph.call_function(operator.getitem, (call, index)))
    return nodes[::-1]
