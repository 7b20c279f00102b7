"""What a convolution or linear layer multiplies its weight with, as rows of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from causal_dfq.network.operations import LINEAR, attribute

# Of a convolution's arguments.
_PADDING = 4


def group_count(layer: fx.Node) -> int:
    """Into how many groups a layer's channels fall; 1 of a linear layer."""
    groups = layer.args[6] if layer.target != LINEAR and len(layer.args) > 6 else 1
    assert isinstance(groups, int)
    return groups


def place_count(layer: fx.Node) -> int:
    """How many places of an image a convolution computes its output at."""
    return math.prod(layer.meta["val"].shape[2:])


def patches_at(values: Tensor, layer: fx.Node, kernel_size: Sequence[int], places: Tensor) -> Tensor:
    """The inputs of a convolution's output at some places: (G, N * P, D), each row in the order of a weight's row.

    The layer's output there is the product with the weight of each group, (O / G, D), plus the bias.

    Args:
        values: what the layer reads, (N, C, ...).
        kernel_size: of the layer's weight, without its channels.
        places: flat numbers (P,) of places of the output, below `place_count`.
    """
    dimensions = len(kernel_size)
    stride, dilation = (_spread(layer, index, dimensions) for index in (3, 5))
    before, after = _padding(layer, kernel_size, dilation)
    ends = [end for pair in reversed(list(zip(before, after, strict=True))) for end in pair]
    # Channels last: of each place all channels are copied at once.
    padded = functional.pad(values, ends).movedim(1, -1)
    sides = padded.shape[1:-1]
    corners = torch.unravel_index(places, tuple(layer.meta["val"].shape[2:]))
    index = torch.zeros((len(places),) + (1,) * dimensions, dtype=torch.int64, device=values.device)
    for axis, (corner, size) in enumerate(zip(corners, kernel_size, strict=True)):
        positions = (corner * stride[axis])[:, None] + torch.arange(size, device=values.device) * dilation[axis]
        shape = (size if other == axis else 1 for other in range(dimensions))
        index = index + positions.view(len(places), *shape) * math.prod(sides[axis + 1 :])
    found = padded.flatten(1, -2).index_select(1, index.flatten())
    groups, channels = group_count(layer), found.shape[-1]
    if groups == channels:
        # Of two dimensions torch copies a transposition block by block.
        return found.flatten(0, 1).t().contiguous().view(groups, -1, math.prod(kernel_size))
    by_group = found.view(len(values), len(places), math.prod(kernel_size), groups, -1)
    rows: Tensor = by_group.permute(3, 0, 1, 4, 2).contiguous()
    return rows.flatten(1, 2).flatten(2)


def kernel_size_of(module: fx.GraphModule, layer: fx.Node) -> tuple[int, ...]:
    """The spatial size of a layer's weight."""
    stored = layer.args[1]
    assert isinstance(stored, fx.Node)
    return tuple(attribute(module, str(stored.target)).shape[2:])


def _spread(layer: fx.Node, index: int, dimensions: int) -> list[int]:
    """A numeric argument of a convolution, for each dimension."""
    default = 0 if index == _PADDING else 1
    value: Any = layer.args[index] if len(layer.args) > index else default
    given = [int(entry) for entry in value] if isinstance(value, Sequence) else [int(value)]
    return given * dimensions if len(given) == 1 else given


def _padding(layer: fx.Node, kernel_size: Sequence[int], dilation: list[int]) -> tuple[list[int], list[int]]:
    """Zeros before and after; "same" gives the output the input's size, an odd one comes after."""
    name = layer.args[_PADDING] if len(layer.args) > _PADDING else None
    if not isinstance(name, str):
        given = _spread(layer, _PADDING, len(kernel_size))
        return given, given
    total = [step * (size - 1) if name == "same" else 0 for step, size in zip(dilation, kernel_size, strict=True)]
    return [zeros // 2 for zeros in total], [zeros - zeros // 2 for zeros in total]
