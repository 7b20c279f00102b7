"""Equalized channels: the same function, on grids that are used better."""

import math

import pytest
import torch
from torch import Tensor, fx, nn

from causal_dfq.config import BitWidths
from causal_dfq.network.capture import capture
from causal_dfq.network.equalize import ChannelMoments, best_factors, by_group, equalize, expected_error
from causal_dfq.network.fold import LAYERS, fold_batch_norm

W4A4 = BitWidths(4, 4)


class Chain(nn.Module):
    """Convolution, depthwise, grouped and linear layers in a row; channels of very different sizes."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers_of_mine = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation()),
            *(nn.Conv2d(8, 16, 3, groups=8), nn.BatchNorm2d(16), activation(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 8, 3, groups=4), nn.BatchNorm2d(8), activation()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        )
        for module in self.layers_of_mine:
            if isinstance(module, nn.BatchNorm2d):
                assert module.weight is not None
                nn.init.normal_(module.bias)
                module.weight.data = torch.exp(torch.randn(module.num_features)) * torch.randn(1).sign()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers_of_mine(images)
        return logits


def folded_and_equalized(network: nn.Module, widths: BitWidths = W4A4) -> tuple[fx.GraphModule, fx.GraphModule]:
    captured = capture(network.eval(), (3, 16, 16))
    folded = fold_batch_norm(captured)
    return folded, equalize(folded, captured, widths)


def layer(module: fx.GraphModule, name: str) -> Tensor:
    weight = module.get_submodule(f"{LAYERS}.{name}").weight
    assert isinstance(weight, Tensor)
    return weight.detach()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity, nn.ReLU6])
def test_the_equalized_network_computes_the_same(activation: type[nn.Module]) -> None:
    network = Chain(activation)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded, equalized = folded_and_equalized(network)
    images = torch.randn(8, 3, 16, 16)
    assert torch.allclose(equalized(images), folded(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(layer(equalized, "conv2d"), layer(folded, "conv2d"), rtol=0.1)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_channels_that_an_activation_clips_keep_their_size() -> None:
    network = Chain(nn.ReLU6)
    norm = network.layers_of_mine[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.bias.data = torch.tensor([0.0, 5.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0])
    norm.weight.data = torch.full((8,), 0.2)
    folded, equalized = folded_and_equalized(network)
    change = layer(equalized, "conv2d").flatten(1).norm(dim=1) / layer(folded, "conv2d").flatten(1).norm(dim=1)
    assert torch.allclose(change[[1, 3]], torch.ones(2))
    # The others never reach 2: ten deviations above their mean.
    assert float(change.max()) <= 3.0 + 1e-5
    assert float(change[[0, 2, 4, 5, 6, 7]].min()) > 1.2


class Branching(nn.Module):
    """A tensor that two layers read, one without a BatchNorm, and tokens whose rows are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.tokens, self.token_norm, self.mix = nn.Conv2d(8, 16, 4, 4), nn.BatchNorm2d(16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        shared = torch.relu(self.norm(self.first(images)))
        tokens = torch.relu(self.token_norm(self.tokens(self.left(shared) + self.right(shared))))
        logits: Tensor = self.head(self.mix(tokens.flatten(2)).mean(1))
        return logits


def test_shared_tensors_layers_without_norm_and_rows_of_tokens_stay() -> None:
    folded, equalized = folded_and_equalized(Branching())
    layers = folded.get_submodule(LAYERS).state_dict()
    assert all(torch.equal(equalized.get_submodule(LAYERS).state_dict()[name], layers[name]) for name in layers)


@pytest.mark.parametrize("bounds", [(0.0, math.inf), (-math.inf, math.inf)])
def test_mean_squares_are_those_of_clipped_normal_values(bounds: tuple[float, float]) -> None:
    mean, deviation = torch.tensor([-1.0, 0.0, 2.0]).double(), torch.tensor([0.5, 1.0, 3.0]).double()
    drawn = mean[:, None] + deviation[:, None] * torch.randn(3, 400_000, generator=torch.Generator().manual_seed(0))
    sizes = ChannelMoments(mean, deviation).clipped(bounds)
    expected = drawn.clamp(*bounds).square().mean(1)
    assert torch.allclose(sizes.mean_square, expected, rtol=0.05)
    assert not sizes.is_clipped.any()


@pytest.mark.parametrize("widths", [W4A4, BitWidths(4, 8), BitWidths(8, 4), BitWidths(32, 4), BitWidths(3, 32)])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_expected_error_is_that_of_uniform_noise_and_the_best_factors_never_add_to_it(
    widths: BitWidths, groups: int
) -> None:
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(16, 8 // groups, 3, 3, generator=random, dtype=torch.float64)
    weight *= torch.exp(torch.randn(8 // groups, generator=random, dtype=torch.float64)).view(1, -1, 1, 1)
    sizes = ChannelMoments(*torch.rand(2, 8, generator=random, dtype=torch.float64)).clipped((0.0, math.inf))
    factors = torch.exp(torch.randn(8, generator=random, dtype=torch.float64))
    # In a few lines: each output channel with its own inputs, in loops.
    expected = 0.0
    for output in range(16):
        first = output // (16 // groups) * (8 // groups)
        own, spanned, square = (
            values[first : first + 8 // groups] for values in (factors, sizes.spanned, sizes.mean_square)
        )
        assert len(spanned) == weight.shape[1]
        scaled = weight[output] / own.view(-1, 1, 1)
        if widths.activation != 32:
            expected += float(((factors * sizes.spanned).max() / (2**widths.activation - 1) * scaled).square().sum())
        if widths.weight != 32:
            step = float(scaled.abs().max()) / (2 ** (widths.weight - 1) - 1)
            expected += 9 * float((step * own).square() @ square)
    grouped = by_group(weight, groups)
    assert expected_error(grouped, sizes, factors, widths) == pytest.approx(expected)
    best = expected_error(grouped, sizes, best_factors(grouped, sizes, widths), widths)
    assert best <= expected_error(grouped, sizes, torch.ones_like(factors), widths)


def test_a_wide_channel_gives_way_to_the_others() -> None:
    sizes = ChannelMoments(torch.zeros(4).double(), torch.tensor([8.0, 1.0, 1.0, 1.0]).double()).clipped(
        (0.0, math.inf)
    )
    factors = best_factors(by_group(torch.ones(6, 4, 1, 1).double(), 1), sizes, BitWidths(8, 4))
    assert float(factors[0] / factors[1]) < 0.6
    assert torch.allclose(factors[1:], factors[1].expand(3))
