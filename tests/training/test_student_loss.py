"""The losses of the field's methods against their formulas in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from causal_dfq.training.student_loss import UNLABELLED, attention_loss, label_loss


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_labels_count_where_an_image_has_one_that_the_pretrained_network_believes() -> None:
    logits = drawn(4, 3).requires_grad_()
    # Believed, not believed, without a label, believed.
    pretrained = torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [4.0, 0, 0], [0, 0, 4.0]])
    labels = torch.tensor([0, 0, UNLABELLED, 2])
    found = label_loss(logits, labels, pretrained, 0.5)
    exact = logits.detach().double()
    expected = [-math.log(math.exp(exact[n, c]) / exact[n].exp().sum().item()) for n, c in ((0, 0), (3, 2))]
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    found.backward()
    assert torch.equal(logits.grad.abs().sum(1) > 0, torch.tensor([True, False, False, True]))


def test_without_a_believed_label_there_is_no_label_loss() -> None:
    assert label_loss(drawn(2, 3), torch.tensor([UNLABELLED] * 2), drawn(2, 3), 0.0).item() == 0


def test_attention_loss_is_its_formula_and_zero_for_equal_maps() -> None:
    features, importance, attended = drawn(3, 4, 2, 5), drawn(3, 4, 1, 1, seed=1), drawn(3, 4, 2, 5, seed=2)
    maps = [(importance.double() * values.double()).sum(1).clamp_min(0).flatten(1) for values in (features, attended)]
    a, b = (functional.normalize(each, dim=1) for each in maps)
    expected = (a - b).square().sum(1).mean()
    assert attention_loss(features, importance, attended).item() == pytest.approx(expected.item(), rel=1e-5)
    assert attention_loss(features, importance, 3 * features).item() == pytest.approx(0, abs=1e-6)
