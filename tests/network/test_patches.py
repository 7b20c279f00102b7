"""Patches times weights are what the layer computes."""

import pytest
import torch
from torch import nn

from causal_dfq.network.capture import capture
from causal_dfq.network.operations import attribute, weight_layer_nodes
from causal_dfq.network.patches import group_count, kernel_size_of, patches_at, place_count


class Alone(nn.Module):
    """A layer whose mean over places are the logits."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.layer(images)
        return found.flatten(2).mean(2)


LAYERS = {
    "plain": (nn.Conv2d(4, 6, 3, padding=1), (4, 7, 9)),
    "strided": (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2)), (4, 7, 9)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=(2, 1), padding=2), (4, 8, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, stride=2), (4, 9, 9)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (4, 7, 7)),
    "same": (nn.Conv2d(4, 6, (4, 3), padding="same"), (4, 7, 9)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (4, 7, 9)),
    "pointwise": (nn.Conv2d(4, 6, 1), (4, 5, 5)),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", LAYERS)
def test_patches_times_weight_is_the_output(kind: str, memory_format: torch.memory_format) -> None:
    layer, shape = LAYERS[kind]
    module = capture(Alone(layer).eval(), shape)
    (node,) = weight_layer_nodes(module.graph)
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    places = torch.randperm(place_count(node), generator=torch.Generator().manual_seed(2))[:7]
    rows = patches_at(images.contiguous(memory_format=memory_format), node, kernel_size_of(module, node), places)
    groups = group_count(node)
    weight = attribute(module, str(node.args[1].target)).flatten(1).unflatten(0, (groups, -1))
    products = (rows @ weight.mT).transpose(0, 1).flatten(1) + layer.bias
    output = layer(images)
    flat = output.flatten(2).mT
    assert flat.shape[1] == place_count(node)
    torch.testing.assert_close(products.unflatten(0, (3, -1)), flat[:, places], rtol=1e-4, atol=1e-5)
