"""Swings: where a map may be shifted to, and which convolutions get one."""

import torch
from torch import Tensor, nn

from causal_dfq.network.capture import capture
from causal_dfq.synthesis.swing import SWINGS, Swing, with_swing
from tests.networks import Residual, trained


class Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.second(torch.relu(self.first(images))).mean((2, 3)))


def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_swing_gives_every_shift_below_the_stride() -> None:
    values = torch.arange(36.0).view(1, 1, 6, 6)
    swing = Swing((2, 3), random())
    seen = {tuple(swing(values)[0, 0, 2, 2:4].int().tolist()) for _ in range(300)}
    expected = {(6 * (2 + y) + 2 + x, 6 * (2 + y) + 3 + x) for y in (-1, 0, 1) for x in (-2, -1, 0, 1)}
    # A shift by 2 reads the last two columns.
    assert seen == expected | {(6 * (2 + y) + 4, 6 * (2 + y) + 5) for y in (-1, 0, 1)}
    assert swing(values).shape == values.shape


def test_strided_convolutions_swing_and_others_do_not() -> None:
    captured = capture(Strided().eval(), (3, 8, 8))
    swung = with_swing(captured, random())
    assert len(list(swung.get_submodule(SWINGS).children())) == 1
    images = torch.randn(2, 3, 8, 8, generator=random())
    results = {tuple(swung(images)[0].detach().tolist()) for _ in range(150)}
    assert len(results) == 9
    assert tuple(captured(images)[0].detach().tolist()) in results


def test_a_network_without_strides_stays_as_it_is() -> None:
    captured = capture(trained(Residual()), (3, 8, 8))
    images = torch.randn(2, 3, 8, 8, generator=random())
    torch.testing.assert_close(with_swing(captured, random())(images), captured(images))
