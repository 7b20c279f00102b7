"""From a layer on: the same as the whole network, and nothing before the layer is computed again."""

import pytest
import torch
from torch import nn

from causal_dfq.network.capture import capture
from causal_dfq.network.continuation import Continuation
from causal_dfq.network.fold import LAYERS, fold_batch_norm
from causal_dfq.network.operations import weight_layer_nodes
from tests.networks import ALL, Normalized, trained


@pytest.mark.parametrize("build", [*ALL, Normalized])
def test_each_layer_changed_alone_gives_what_the_whole_network_gives(build: type[nn.Module]) -> None:
    network = fold_batch_norm(capture(trained(build()), (3, 8, 8)))
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    continuation = Continuation(network, images, largest_chunk=3)
    torch.testing.assert_close(continuation.result(), network(images), rtol=0, atol=1e-5)
    for layer in weight_layer_nodes(network.graph):
        continuation.advance_to(layer.name)
        weight = network.get_submodule(f"{LAYERS}.{layer.name}").weight
        kept = weight.detach().clone()
        for factor in (0.5, 2.0):
            weight.data.copy_(factor * kept)
            torch.testing.assert_close(continuation.result(), network(images), rtol=1e-4, atol=1e-5)
        weight.data.copy_(kept)


def test_what_comes_before_the_layer_is_not_computed_again() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Flatten())
    network = fold_batch_norm(capture(trained(chain), (3, 8, 8)))
    first, second = (layer.name for layer in weight_layer_nodes(network.graph))
    continuation = Continuation(network, torch.randn(2, 3, 8, 8), largest_chunk=2)
    before = continuation.result()
    continuation.advance_to(second)
    network.get_submodule(f"{LAYERS}.{first}").weight.data.zero_()
    assert torch.equal(continuation.result(), before)
