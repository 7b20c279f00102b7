"""The measures of the causal analysis against their formulas, and at the values where they must end."""

import numpy
import pytest
import torch
from torch import Tensor

from causal_dfq.causal.analysis import content_accuracy, grad_cam, linear_cka, map_overlap


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_content_accuracy_counts_interventions_that_keep_the_class() -> None:
    labels = torch.tensor([0, 1])
    by_style = torch.tensor([[[2.0, 1.0], [0.0, 3.0]], [[1.0, 2.0], [0.0, 1.0]]])
    assert content_accuracy(by_style, labels).item() == pytest.approx(3 / 4)


def test_cka_is_its_formula_in_float64() -> None:
    first, second = drawn(9, 4), drawn(9, 6, seed=1)
    x, y = (values.double().numpy() - values.double().numpy().mean(0) for values in (first, second))
    expected = numpy.linalg.norm(y.T @ x) ** 2 / (numpy.linalg.norm(x.T @ x) * numpy.linalg.norm(y.T @ y))
    assert linear_cka(first, second).item() == pytest.approx(expected, rel=1e-6)


def test_cka_ignores_rotation_and_scale_but_not_noise() -> None:
    values = drawn(40, 5)
    rotation = torch.linalg.qr(drawn(5, 5, seed=1)).Q
    assert linear_cka(values, 3 * values @ rotation + 7).item() == pytest.approx(1.0, abs=1e-5)
    assert linear_cka(values, drawn(40, 5, seed=2)).item() < 0.5
    assert linear_cka(values, torch.ones(40, 5)).item() == 0.0


def test_grad_cam_is_its_formula() -> None:
    features, gradient = drawn(2, 3, 4, 5), drawn(2, 3, 4, 5, seed=1)
    for n in range(2):
        expected = sum(gradient[n, c].double().mean() * features[n, c].double() for c in range(3)).clamp_min(0)
        torch.testing.assert_close(grad_cam(features, gradient)[n].double(), expected, rtol=1e-5, atol=1e-6)


def test_maps_overlap_by_the_share_that_lies_in_the_same_places() -> None:
    left, both = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]])
    assert map_overlap(left, 5 * left).item() == pytest.approx(1.0)
    assert map_overlap(left, both).item() == pytest.approx(0.5)
    assert map_overlap(left, left.flip(2)).item() == 0.0
    # An image without a reference says nothing; one that the other network does not look at counts as missed.
    empty = torch.zeros(1, 1, 2)
    assert map_overlap(torch.cat([left, empty]), torch.cat([both, both])).item() == pytest.approx(0.5)
    assert map_overlap(torch.cat([left, left]), torch.cat([left, empty])).item() == pytest.approx(0.5)
    assert map_overlap(empty, both).item() == 0.0
