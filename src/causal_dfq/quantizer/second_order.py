"""A layer's weight rounded so that its output moves least: least squares instead of the nearest code.

A layer's output is linear in its weight, so its error over many samples is a quadratic form: what the layer reads
enters through second moments alone, and no gradient step is needed. One input after another is rounded, and the
weights of those not yet rounded make up for it.

Source: Frantar and Alistarh, "Optimal Brain Compression" (NeurIPS 2022), and Frantar et al., "GPTQ" (ICLR 2023). That
the target is P's output on what P reads, while Q reads rounded values, after Li et al., "GPTAQ" (ICML 2025); the pull
towards P's weight and the bias as one more input [ours].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from causal_dfq.quantizer.affine import fake_quantize

# Inputs that are rounded before the others hear of it: a matrix product for all is faster than one for each.
_BLOCK = 64
# Against inputs that are never seen.
_SMALLEST_SHARE = 1e-9
# From the middle of a code's cell, in steps; its edges lie at a half.
_CELL = 0.45


@dataclass(frozen=True)
class Moments:
    """What a layer reads, as sums over samples, for each of G groups of its channels.

    A sample is a column x of D values: the D - 1 inputs of an output channel, and 1 for the bias. `own` (G, D, D) is
    the sum of x_Q x_Q^T, `cross` (G, D, D) that of x_P x_Q^T; float64.
    """

    own: Tensor
    cross: Tensor

    @staticmethod
    def of(read_by_p: Tensor, read_by_q: Tensor) -> Moments:
        """Of samples (G, n, D - 1) that stand for the same places of the same images."""
        return Moments(_products(read_by_q, read_by_q), _products(read_by_p, read_by_q))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.own + other.own, self.cross + other.cross)

    @property
    def importance(self) -> Tensor:
        """(G, D - 1): the sum of squares of each input."""
        return self.own.diagonal(dim1=1, dim2=2)[:, :-1]

    def damped(self, share: float) -> Tensor:
        """`own` with a share of the mean of `importance` on its diagonal; the bias is free."""
        ridge = self.importance.mean(1, keepdim=True) * max(share, _SMALLEST_SHARE) + _SMALLEST_SHARE
        of_bias = self.own[:, -1:, -1] * _SMALLEST_SHARE
        damped: Tensor = self.own + torch.diag_embed(torch.cat([ridge.expand_as(self.importance), of_bias], 1))
        return damped


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Of samples (G, n, D - 1) of two kinds: the sum of x y^T, (G, D, D), where each ends with a 1.

    The 1 is not appended: that would copy what may be gigabytes.
    """
    groups, count, inputs = first.shape
    result = first.new_empty(groups, inputs + 1, inputs + 1, dtype=torch.float64)
    result[:, :-1, :-1] = first.mT @ second
    result[:, :-1, -1], result[:, -1, :-1], result[:, -1, -1] = first.sum(1), second.sum(1), count
    return result


def joined(weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """A layer's weight (O, ...) and bias (O,) -> (G, O / G, D), the bias last, float64."""
    rows = torch.cat([weight.flatten(1), bias[:, None]], 1)
    by_group: Tensor = rows.unflatten(0, (groups, -1)).double()
    return by_group


def least_squares_weight(weight: Tensor, moments: Moments, pull: float) -> Tensor:
    """The real weight whose output on what Q reads is nearest to P's, (G, O / G, D) as `joined` makes them.

    argmin over W of sum |W x_Q - W_P x_P|^2 + r |W - W_P|^2, r being `pull` times the mean of `importance`
    [the pull ours].
    """
    damped = moments.damped(pull)
    target = weight @ (moments.cross + damped - moments.own)
    solution: Tensor = torch.linalg.solve(damped, target, left=False)
    return solution


def round_in_order(weight: Tensor, moments: Moments, grid: tuple[Tensor, Tensor, int, int], damping: float) -> Tensor:
    """The weight (G, O / G, D) on its grid; the bias, which comes last, takes up what is left, unrounded.

    Inputs of large `importance` come first. Each one's error e moves the weights still free by the least squares
    solution, which the Cholesky factor U of the inverse of the damped moments holds: W -= e / U_ii U_i.

    Args:
        grid: scales and zero points, (G, O / G) each, and the ends of the codes.
        damping: on the diagonal of the moments, in units of its mean.
    """
    scale, zero_point, lowest, highest = grid
    inputs = weight.shape[2] - 1
    order = torch.argsort(moments.importance.mean(0), descending=True)
    order = torch.cat([order, order.new_tensor([inputs])])
    moved = weight[:, :, order].clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments.damped(damping)[:, order][:, :, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = torch.empty_like(moved[:, :, start:end])
        for place in range(start, end):
            exact = moved[:, :, place].clone()
            rounded = fake_quantize(exact, scale, zero_point, lowest, highest)
            error = (exact - rounded) / factor[:, place, place, None]
            moved[:, :, place:end] -= error[:, :, None] * factor[:, place, None, place:end]
            moved[:, :, place] = rounded
            errors[:, :, place - start] = error
        moved[:, :, end:] -= errors @ factor[:, start:end, end:]
    result = torch.empty_like(moved)
    result[:, :, order] = moved
    return result


def within_cell(weight: Tensor, rounded: Tensor, scale: Tensor) -> Tensor:
    """Real weights that round to `rounded` and lie as near to `weight` as they can; all (G, O / G, D), scale
    (G, O / G). The last input, the bias, is that of `rounded`.

    Training moves a weight to another code from near an edge of its cell, not from the middle [ours].
    """
    reach = _CELL * scale[:, :, None]
    inside = torch.minimum(torch.maximum(weight, rounded - reach), rounded + reach)
    return torch.cat([inside[:, :, :-1], rounded[:, :, -1:]], 2)
