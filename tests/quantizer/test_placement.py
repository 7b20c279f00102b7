"""Which tensors each protocol quantizes."""

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from causal_dfq.config import BitWidths, Protocol
from causal_dfq.network.capture import capture
from causal_dfq.network.fold import fold_batch_norm
from causal_dfq.quantized import freeze
from causal_dfq.quantizer.modules import WeightQuantizer
from causal_dfq.quantizer.placement import place_quantizers, quantized_tensors
from tests.networks import Concatenating, Normalized, Residual, SqueezeExcite, trained

W4A4 = BitWidths(4, 4)


def placed(network: nn.Module, protocol: Protocol, bits: BitWidths = W4A4) -> fx.GraphModule:
    return place_quantizers(fold_batch_norm(capture(trained(network), (3, 8, 8))), bits, protocol)


def names(module: fx.GraphModule) -> list[str]:
    return [name for sources in quantized_tensors(module).values() for name in sources]


def widths(module: fx.GraphModule, prefix: str) -> list[int]:
    return [m.bits for name, m in module.named_modules() if name.startswith(prefix + ".")]


def test_deploy_quantizes_what_an_integer_runtime_reads() -> None:
    # The image, conv+ReLU, the other input of the add, add+ReLU, the pooled features; not the logits.
    assert names(placed(Residual(), "deploy")) == ["images", "relu", "conv2d_1", "relu_1", "mean"]


def test_both_inputs_of_a_residual_add_are_on_grids() -> None:
    module = placed(Residual(), "deploy")
    add = next(node for node in module.graph.nodes if "add" in node.name and node.op == "call_function")
    assert all(str(argument.target).startswith("activation_quantizers.") for argument in add.args)


def test_image_has_eight_bits() -> None:
    assert widths(placed(Residual(), "deploy"), "activation_quantizers") == [8, 4, 4, 4, 4]


def test_gdfq_quantizes_activation_functions_alone() -> None:
    module = placed(Residual(), "gdfq")
    assert names(module) == ["relu", "relu_1"]
    quantizers = [m for m in module.modules() if isinstance(m, WeightQuantizer)]
    assert any((quantizer.zero_point != 0).any() for quantizer in quantizers)


def test_genie_quantizes_layer_inputs_with_eight_bits_at_both_ends() -> None:
    module = placed(Residual(), "genie")
    assert names(module) == ["images", "relu", "mean"]
    assert widths(module, "activation_quantizers") == [8, 4, 8]
    assert widths(module, "weight_quantizers") == [8, 4, 8]


def test_concatenated_tensors_share_one_grid() -> None:
    tensors = quantized_tensors(placed(Concatenating(), "deploy"))
    assert sorted(map(sorted, tensors.values())).count(["conv2d", "conv2d_1"]) == 1


def test_gates_and_smooth_activations_are_operations_of_their_own() -> None:
    found = names(placed(SqueezeExcite(), "deploy"))
    assert {"hardswish", "sigmoid", "mul"} <= set(found)
    assert "conv2d_1" in found


def test_a_stream_that_is_normalized_is_float_but_where_a_layer_reads_it() -> None:
    module = placed(Normalized(), "deploy")
    # Of the stream the second sum alone: `local` reads it. Of relu(x)**2 * 0.8 - 0.4 the end.
    expected = ["images", "conv2d", "layer_norm", "relu", "sub", "linear_1", "add_1", "linear_2"]
    assert names(module) == [*expected, "layer_norm_2", "mean"]
    arguments = {node.name: node.args for node in module.graph.nodes}
    assert [arguments[reader][0].name for reader in ("layer_norm", "layer_norm_1", "layer_norm_2")] == [
        "add",
        "add_1",
        "add_3",
    ]
    assert str(arguments["linear_2"][0].target) == "activation_quantizers.add_1"
    # Layers write codes all the same, or no runtime would compute them in integers.
    assert str(arguments["add"][0].args[0].args[0].target) == "activation_quantizers.conv2d"
    assert str(arguments["add_2"][1].target) == "activation_quantizers.linear_2"


class NormalizedLast(nn.Module):
    """Blocks that end in a LayerNorm, as in Swin V2; the stream is read by layers, once shifted, and by sums."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.patches(images).flatten(2).transpose(1, 2)
        stream = stream + self.norm1(self.first(stream))
        stream = stream + self.norm2(self.second(stream.roll(1, 1)))
        return self.fc(stream.mean(1))


def test_a_stream_whose_branches_are_normalized_is_float_for_its_sums() -> None:
    module = placed(NormalizedLast(), "deploy")
    # Not what the norms write; the first sum for `second`, the last one for the mean.
    assert names(module) == ["images", "conv2d", "linear", "add", "linear_1", "add_1", "mean"]
    arguments = {node.name: node.args for node in module.graph.nodes}
    assert [argument.name for argument in arguments["add_1"]] == ["add", "layer_norm_1"]
    assert str(arguments["roll"][0].target) == "activation_quantizers.add"


class Attending(nn.Module):
    """Attention that is written out, with a mask; a layer whose result a softmax reads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.gate, self.fc = nn.Conv2d(3, 12, 1), nn.Linear(4, 4), nn.Linear(4, 5)
        self.register_buffer("mask", -100 * torch.ones(64, 64).triu(1))

    def forward(self, images: Tensor) -> Tensor:
        q, k, v = self.qkv(images).flatten(2).transpose(1, 2).chunk(3, 2)
        mixed = torch.softmax(q @ k.transpose(1, 2) * 0.5 + self.mask, -1) @ v
        return self.fc(torch.softmax(self.gate(mixed.mean(1)), -1))


def test_scores_of_an_attention_are_float_and_layers_write_codes() -> None:
    module = placed(Attending(), "deploy")
    assert names(module) == ["images", "conv2d", "softmax", "matmul_1", "mean", "linear", "softmax_1"]


class Dividing(nn.Module):
    """Linear attention: one product holds numerators and, at its end, what they are divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.conv(images)).flatten(2)
        product = features @ features.transpose(1, 2)
        return self.fc((product[:, :3] / (product[:, 3:] + 1e-5)).mean(2))


def test_what_is_divided_by_is_not_rounded() -> None:
    module = placed(Dividing(), "deploy")
    assert names(module) == ["images", "relu", "matmul", "div", "mean"]
    division = next(node for node in module.graph.nodes if node.name == "div")
    sources = [division.args[0], division.args[1].args[0]]
    for index, source in enumerate(sources):
        while "slice" in str(source.target):
            source = source.args[0]
        sources[index] = source
    assert [str(source.target) for source in sources] == ["activation_quantizers.matmul", "aten.matmul.default"]


class Normalizing(nn.Module):
    """Features of length one, of a layer without bias: black images have the norm zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1, bias=False), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(functional.normalize(self.conv(images).mean((2, 3))))


def test_black_images_have_finite_logits_where_features_are_divided_by_their_norm() -> None:
    module = placed(Normalizing(), "deploy", BitWidths(8, 8))
    assert not any("clamp" in name or "norm" in name for name in names(module))
    assert freeze(module)(torch.zeros(1, 3, 8, 8)).isfinite().all()


class Sigmoid(nn.Module):
    """A sigmoid and a swish that are written out: what they divide by is never zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        features = self.second(features / (1 + torch.exp(-features)))
        return self.fc((1 / (1 + torch.exp(-features))).mean((2, 3)))


def test_a_layer_writes_codes_whatever_its_result_becomes() -> None:
    module = placed(Sigmoid(), "deploy")
    for node in module.graph.nodes:
        if "conv2d" in node.name and node.op == "call_function":
            assert [str(user.target) for user in node.users] == [f"activation_quantizers.{node.name}"]


@pytest.mark.parametrize("protocol", ["gdfq", "genie"])
def test_protocols_of_papers_know_no_streams(protocol: Protocol) -> None:
    module = placed(Normalized(), protocol)
    for node in module.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith("activation_quantizers."):
            assert list(node.args[0].users) == [node]


@pytest.mark.parametrize(("bits", "kinds"), [((4, 32), {"weight_quantizers"}), ((32, 4), {"activation_quantizers"})])
def test_thirty_two_bits_leave_one_kind_alone(bits: tuple[int, int], kinds: set[str]) -> None:
    module = placed(Residual(), "deploy", BitWidths(*bits))
    found = {name for name in ("weight_quantizers", "activation_quantizers") if hasattr(module, name)}
    assert found == kinds


def test_the_folded_network_is_not_changed() -> None:
    folded = fold_batch_norm(capture(trained(Residual()), (3, 8, 8)))
    images = torch.randn(2, 3, 8, 8)
    before = folded(images)
    place_quantizers(folded, W4A4, "deploy")
    assert torch.equal(folded(images), before)


def test_frozen_network_gives_the_logits_of_the_trained_one() -> None:
    module = placed(Residual(), "deploy")
    for sources in quantized_tensors(module):
        module.get_submodule(sources).set_range(0.11, 7.0 if "conv" in sources else 0.0)
    frozen = freeze(module)
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(frozen(images), module(images))
    assert not list(frozen.parameters())
