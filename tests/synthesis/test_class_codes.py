"""The generator's first class codes, from the classifier's rows."""

import torch
from torch import nn

from causal_dfq.network.capture import capture
from causal_dfq.network.fold import fold_batch_norm
from causal_dfq.synthesis.class_codes import class_codes, classifier_rows
from tests.networks import Residual, trained


def rows(classes: int = 30, width: int = 40) -> torch.Tensor:
    """Classes in pairs that are nearly alike."""
    random = torch.Generator().manual_seed(3)
    pairs = torch.randn(classes // 2, width, generator=random).repeat_interleave(2, 0)
    return pairs + 0.1 * torch.randn(classes, width, generator=random)


def codes(of: torch.Tensor, size: int = 64) -> torch.Tensor:
    return class_codes(of, size, torch.Generator().manual_seed(0))


def test_classes_that_are_alike_begin_alike() -> None:
    found = codes(rows())
    distance = torch.cdist(found, found).fill_diagonal_(torch.inf)
    assert distance.argmin(1).tolist() == [number ^ 1 for number in range(30)]


def test_distances_are_those_of_the_rows_but_for_their_unit() -> None:
    wanted, found = (torch.pdist(values.double()) for values in (rows(), codes(rows(), 4096)))
    ratio = found / wanted
    assert float(ratio.std() / ratio.mean()) < 0.05


def test_mean_square_is_one_whatever_the_rows_size_and_common_part() -> None:
    found = codes(rows())
    torch.testing.assert_close(found.square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(codes(7 * rows() + torch.arange(40.0)), found, rtol=1e-3, atol=1e-3)


def test_rows_are_the_last_layers_where_each_class_has_one() -> None:
    network = trained(Residual())
    folded = fold_batch_norm(capture(network, (3, 16, 16)))
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    found = classifier_rows(folded)
    assert found is not None
    torch.testing.assert_close(found, last.weight.detach())


def test_a_last_layer_without_a_row_for_each_class_gives_none() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = trained(Residual())

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = self.network(images)
            return torch.cat([logits, -logits], 1)

    assert classifier_rows(fold_batch_norm(capture(Doubled().eval(), (3, 16, 16)))) is None
