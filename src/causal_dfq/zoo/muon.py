"""The Muon optimizer for convolution weights, used to train the bundled networks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values come to lie in [0.7, 1.2].

    Source: the quintic Newton-Schulz iteration of Jordan et al., "Muon" (2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrix.shape[0] > matrix.shape[1]
    result: Tensor = matrix.T if is_tall else matrix
    result = result / (result.norm() + 1e-7)
    for _ in range(iterations):
        gram = result @ result.T
        result = a * result + (b * gram + c * gram @ gram) @ result
    orthogonal: Tensor = result.T if is_tall else result
    return orthogonal


class Muon(torch.optim.Optimizer):
    """Steps of fixed spectral size for convolutions that a BatchNorm follows.

    Each weight is kept at Frobenius norm sqrt(out_channels): BatchNorm takes the scale out, so the
    learning rate is the relative size of a step. torch.optim.Muon takes matrices only.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                velocity = state.setdefault("velocity", torch.zeros_like(weight))
                velocity.lerp_(weight.grad, 1 - group["momentum"])
                direction = weight.grad.lerp(velocity, group["momentum"])
                update = orthogonalize(direction.flatten(1)).view_as(weight)
                weight.mul_(weight.shape[0] ** 0.5 / weight.norm())
                weight.sub_(update, alpha=group["lr"])
