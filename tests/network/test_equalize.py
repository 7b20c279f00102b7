"""Equalized channels: the same function, on grids that are used better."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from causal_dfq.network.capture import capture
from causal_dfq.network.equalize import by_group, channel_reach, equal_factors, equalize
from causal_dfq.network.fold import LAYERS, fold_batch_norm


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


def folded_and_equalized(network: nn.Module) -> tuple[fx.GraphModule, fx.GraphModule]:
    captured = capture(network.eval(), (3, 16, 16))
    folded = fold_batch_norm(captured)
    return folded, equalize(folded, captured)


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


class Treacherous(nn.Module):
    """A convolution whose channels are averaged away or moved before a layer reads as many of something else."""

    def __init__(self, way: Callable[[Tensor], Tensor], reader: nn.Module) -> None:
        super().__init__()
        self.writer, self.norm, self.way, self.reader = nn.Conv2d(3, 8, 9), nn.BatchNorm2d(8), way, reader
        self.norm.weight.data = torch.linspace(0.1, 4, 8)

    def forward(self, images: Tensor) -> Tensor:
        read: Tensor = self.reader(self.way(torch.relu(self.norm(self.writer(images)))))
        return read.flatten(1)


@pytest.mark.parametrize(
    ("way", "reader"),
    [
        (lambda maps: maps.mean(1).flatten(1), nn.Linear(64, 5)),
        (lambda maps: maps.flatten(2).mean(1), nn.Linear(64, 5)),
        (lambda maps: maps.mean(1), nn.Conv1d(8, 5, 1)),
        (lambda maps: maps.mean((1, 2)), nn.Linear(8, 5)),
        (lambda maps: maps.flatten(1), nn.Linear(512, 5)),
        (lambda maps: maps.flatten(2), nn.Linear(64, 5)),
        (lambda maps: maps.transpose(1, 2), nn.Conv2d(8, 5, 1)),
        (lambda maps: maps.flatten(2).unflatten(2, (8, 8)).permute(0, 3, 1, 2), nn.Conv2d(8, 5, 1)),
        (lambda maps: maps.clamp(-1, 1), nn.Conv2d(8, 5, 1)),
        (lambda maps: maps.mean(2).mean(-1).reshape(-1, 8), nn.Linear(8, 5)),
        (lambda maps: functional.max_pool2d(maps.flatten(2), 3, 1, 1), nn.Conv1d(8, 5, 1)),
        (lambda maps: maps.flatten(2), nn.Conv1d(8, 5, 3)),
    ],
)
def test_channels_that_go_astray_are_not_followed(way: Callable[[Tensor], Tensor], reader: nn.Module) -> None:
    folded, equalized = folded_and_equalized(Treacherous(way, reader))
    images = torch.randn(8, 3, 16, 16)
    assert torch.allclose(equalized(images), folded(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", [lambda maps: maps.mean((2, 3)), lambda maps: maps.mean((-1, -2), True).view(-1, 8)])
def test_channels_are_followed_through_means_over_places(pool: Callable[[Tensor], Tensor]) -> None:
    folded, equalized = folded_and_equalized(Treacherous(pool, nn.Linear(8, 5)))
    images = torch.randn(8, 3, 16, 16)
    assert torch.allclose(equalized(images), folded(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(layer(equalized, "linear"), layer(folded, "linear"), rtol=0.1)


def test_factors_bring_reach_and_weight_to_one_size() -> None:
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(16, 4, 3, 3, generator=random, dtype=torch.float64)
    reach = channel_reach(*torch.rand(2, 8, generator=random, dtype=torch.float64), (0.0, math.inf))
    factors = equal_factors(by_group(weight, 2), reach, math.inf)
    for channel in range(8):
        group, inside = divmod(channel, 4)
        largest = float(weight[8 * group : 8 * group + 8, inside].abs().max())
        # What its grid spans and the weight that is left are alike, but for a factor that all share.
        shared = float(factors[channel] * reach[channel]) / (largest / float(factors[channel]))
        assert shared == pytest.approx(
            float((factors * reach)[0]) / (float(weight[:8, 0].abs().max()) / float(factors[0]))
        )
    assert float(factors.log().mean()) == pytest.approx(0, abs=1e-9)


def test_a_depthwise_reader_leaves_the_reach_alone_and_no_factor_is_extreme() -> None:
    weight = torch.tensor([1.0, 100.0, 1.0, 1.0]).view(4, 1, 1, 1)
    factors = equal_factors(by_group(weight, 4), torch.tensor([1.0, 1.0, 2.0, 1e9]).double(), math.inf)
    assert float(factors[0]) == float(factors[1]) == 8.0
    assert float(factors[3]) == 1 / 8


@pytest.mark.parametrize(("low", "expected"), [(0.0, [5.0, 1e-6 * 10, 10.0]), (-math.inf, [15.0, 10.0, 20.0])])
def test_reach_is_ten_deviations_of_a_side_or_of_both(low: float, expected: list[float]) -> None:
    mean, deviation = torch.tensor([-5.0, -10.0, 0.0]).double(), torch.tensor([1.0, 0.0, 1.0]).double()
    if low:
        mean = torch.tensor([-5.0, -10.0, 10.0]).double()
    assert channel_reach(mean, deviation, (low, math.inf)).tolist() == pytest.approx(expected)
