"""The losses against loops in float64."""

import math

import pytest
import torch
from torch import Tensor

from causal_dfq.causal.discrepancy import (
    contrastive_discrepancy,
    interventional_discrepancy,
    matching_discrepancy,
    style_sensitivity,
)

STYLES, CONTENTS, CLASSES = 3, 4, 5


def logits(seed: int) -> Tensor:
    return torch.randn(STYLES, CONTENTS, CLASSES, generator=torch.Generator().manual_seed(seed)) * 2


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def kl(first: list[float], second: list[float], temperature: float) -> float:
    p, q = softmax(first, temperature), softmax(second, temperature)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_interventional_discrepancy_sums_over_different_styles(temperature: float) -> None:
    p, q = logits(0).tolist(), logits(1).tolist()
    terms = [
        kl(p[i][n], q[j][n], temperature)
        for i in range(STYLES)
        for j in range(STYLES)
        for n in range(CONTENTS)
        if i != j
    ]
    found = float(interventional_discrepancy(logits(0), logits(1), temperature))
    assert found == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_matching_discrepancy_keeps_the_style() -> None:
    p, q = logits(0).tolist(), logits(1).tolist()
    terms = [kl(p[i][n], q[i][n], 2.0) for i in range(STYLES) for n in range(CONTENTS)]
    assert float(matching_discrepancy(logits(0), logits(1), 2.0)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_networks_that_ignore_style_and_agree_have_no_discrepancy() -> None:
    constant = logits(0)[:1].expand(STYLES, -1, -1)
    assert float(interventional_discrepancy(constant, constant)) == pytest.approx(0, abs=1e-6)
    assert float(style_sensitivity(constant)) == pytest.approx(0, abs=1e-6)


def test_sensitivity_does_not_depend_on_the_order_of_styles() -> None:
    assert float(style_sensitivity(logits(0))) == pytest.approx(float(style_sensitivity(logits(0).flip(0))), rel=1e-5)


def test_contrastive_discrepancy_is_its_formula() -> None:
    p, q = logits(0).double(), logits(1).double()
    terms = []
    for i in range(STYLES):
        for j in range(STYLES):
            if i == j:
                continue
            for n in range(CONTENTS):
                scores = [float(torch.cosine_similarity(q[j, n], p[i, m], 0)) / 0.2 for m in range(CONTENTS)]
                terms.append(-math.log(softmax(scores, 1.0)[n]))
    found = float(contrastive_discrepancy(logits(0), logits(1), 0.2))
    assert found == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_contrastive_discrepancy_prefers_the_same_content() -> None:
    own = torch.eye(CONTENTS).expand(STYLES, -1, -1)
    assert contrastive_discrepancy(own, own, 0.1) < 1e-3
    assert contrastive_discrepancy(own, own.roll(1, 1), 0.1) > 5


@pytest.mark.parametrize("loss", [interventional_discrepancy, lambda p, q: contrastive_discrepancy(p, q, 0.1)])
def test_one_style_is_refused(loss: object) -> None:
    with pytest.raises(ValueError, match="at least 2 styles"):
        loss(logits(0)[:1], logits(1)[:1])  # type: ignore[operator]
