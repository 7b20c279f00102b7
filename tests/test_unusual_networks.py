"""Signals instead of pictures, layers whose weights stay in float, tensors of the network's own: quantized or told."""

import copy
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

import causal_dfq
from causal_dfq.config import BitWidths
from causal_dfq.errors import ExportError, WeightsError
from causal_dfq.export.integer_graph import integer_graph
from causal_dfq.network.capture import capture
from causal_dfq.network.fold import fold_batch_norm
from causal_dfq.network.operations import operation_name, unrounded_layers
from causal_dfq.quantizer.placement import place_quantizers, quantized_tensors
from causal_dfq.summary import summary_table
from causal_dfq.training import budget
from causal_dfq.training.budget import Budget
from tests.networks import trained


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Budget(3, 1, 1, student_steps=1, imprint_batches=1, imprint_iterations=2)
    monkeypatch.setitem(budget.BUDGETS, "fast", small)


class Signals(nn.Module):
    """Two channels of a signal as pictures one pixel high, with padding that torch works out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(2, 8, 5, padding="same"), nn.BatchNorm1d(8)
        self.second, self.fc = nn.Conv1d(8, 8, 4, padding="same", dilation=2), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.first(images.squeeze(2))))
        return self.fc(torch.relu(self.second(features)).mean(2))


class Volumes(nn.Module):
    """A picture as a volume of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.fc = nn.Conv3d(1, 4, 3, padding="same"), nn.BatchNorm3d(4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.first(images.unsqueeze(1)))).mean((2, 3, 4)))


@pytest.mark.parametrize(
    ("network", "shape", "layers"), [(Signals, (2, 1, 32), 3), (Volumes, (3, 8, 8), 2)], ids=["signals", "volumes"]
)
def test_padding_that_torch_works_out_is_a_layer_as_any(
    network: type[nn.Module], shape: tuple[int, int, int], layers: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    quantized = causal_dfq.quantize(trained(network()), "w8a8", shape, effort="fast", device="cpu")
    weights = [tensor for tensor in quantized.quantized_tensors() if tensor.kind == "weight"]
    assert len(weights) == layers
    images = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    exact = quantized.reference(images).detach()
    assert float((quantized(images).detach() - exact).norm() / exact.norm()) < 0.1
    exported = causal_dfq.export_onnx(quantized, tmp_path / "model.onnx")
    assert exported.parity.cosine > 0.99


class Enlarging(nn.Module):
    """A transposed convolution and a product with a matrix of its own between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.larger = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2, 2)
        self.matrix, self.fc = nn.Parameter(torch.randn(4, 6)), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.larger(torch.relu(self.first(images))).mean((2, 3))
        return self.fc(torch.relu(features @ self.matrix))


def test_weights_that_stay_in_float_are_told_and_not_left_to_a_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = causal_dfq.quantize(Enlarging().eval(), "w8a8", (3, 8, 8), effort="fast", device="cpu")
    console = Console(width=200)
    with console.capture() as capture:
        console.print(summary_table(quantized, tmp_path))
    assert "2 layers at 8 bits" in capture.get()
    assert "the weights of larger (conv_transpose2d), matmul (matmul)" in capture.get()
    with pytest.raises(ExportError, match="conv_transpose2d at larger has its weights in float"):
        causal_dfq.export_onnx(quantized, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


class Products(nn.Module):
    """Matrices of its own, multiplied in other ways than by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.recurrent, self.fc = nn.Conv2d(3, 4, 3), nn.GRU(6, 6, batch_first=True), nn.Linear(6, 3)
        self.matrix, self.other, self.offset = (nn.Parameter(torch.randn(*size)) for size in ((4, 6), (6, 6), (6,)))

    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.relu(self.first(images)).flatten(2).mT
        tokens, _ = self.recurrent(torch.einsum("ntd,dk->ntk", tokens, self.matrix))
        return self.fc(torch.addmm(self.offset, tokens.mean(1), self.other))


def test_products_with_matrices_of_the_network_are_found() -> None:
    module = capture(Products(), (3, 8, 8))
    assert [operation_name(node) for node in unrounded_layers(module.graph)] == ["einsum", "gru", "addmm"]

    plain = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)), (3, 8, 8))
    assert not unrounded_layers(plain.graph)


class OwnTensors(nn.Module):
    """A mean that is not saved with the weights, an infinite mask, and zeros as many as there are images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(8, 3)
        self.register_buffer("mean", torch.tensor([0.2, 0.1, -0.1]).view(3, 1, 1), persistent=False)
        self.register_buffer("mask", torch.full((36, 36), -torch.inf).triu(1))

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images - self.mean).flatten(2)
        weights = torch.softmax(features.mT @ features + self.mask, 2)
        pooled = (features @ weights.mT).mean(2)
        return self.fc(torch.cat([pooled, torch.zeros(images.shape[0], 4, device=images.device)], 1))


def test_tensors_of_the_network_are_kept_whatever_it_saves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = causal_dfq.quantize(OwnTensors().eval(), "w8a8", (3, 8, 8), effort="fast", device="cpu")
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    quantized.save(tmp_path)
    loaded = causal_dfq.load(tmp_path)
    assert torch.equal(loaded(images), quantized(images))
    assert torch.equal(loaded.reference(images), quantized.reference(images))


def test_tensors_as_large_as_the_batch_are_made_where_the_images_are() -> None:
    module = capture(OwnTensors().eval(), (3, 8, 8)).to("meta")
    assert module(torch.empty(5, 3, 8, 8, device="meta")).shape == (5, 3)
    assert not any("device" in node.kwargs for node in module.graph.nodes)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_no_training_gives_are_refused(value: float) -> None:
    network = trained(Signals())
    network.norm.running_var[1] = value
    with pytest.raises(WeightsError, match=r"1 NaN or infinite values in 'norm\.running_var'"):
        capture(network, (2, 1, 32))


def test_a_mask_may_be_infinite_but_not_undefined() -> None:
    network = OwnTensors().eval()
    network.mask[3, 2] = torch.nan
    with pytest.raises(WeightsError, match="1 NaN or infinite values in 'mask'"):
        capture(network, (3, 8, 8))


class Attribute(nn.Module):
    """A tensor that is an attribute alone, in another type."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.mean = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), torch.full((3, 1, 1), 0.5).half()

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images - self.mean).mean((2, 3)))


def test_a_tensor_that_is_an_attribute_goes_where_the_network_goes() -> None:
    network = Attribute().half().eval()
    captured = capture(network, (3, 8, 8))
    exact = copy.deepcopy(network).float()
    exact.mean = exact.mean.float()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(captured(images), exact(images), rtol=1e-4, atol=1e-5)
    assert network.mean.dtype == torch.float16


class Chosen(nn.Module):
    """The places of the largest values choose among others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.conv(images)).flatten(2)
        _, places = features.mean(1).topk(5, 1)
        kept = features.gather(2, places[:, None].expand(-1, 4, -1))
        return self.fc(kept.mean(2))


def test_places_of_the_largest_values_are_no_codes() -> None:
    torch.manual_seed(0)
    quantized = causal_dfq.quantize(Chosen().eval(), "w8a8", (3, 8, 8), effort="fast", device="cpu")
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    # A runtime may choose others of equal values: the integer graph alone is compared.
    in_integers = integer_graph(quantized.graph_module, "uint8")(images)
    assert functional.cosine_similarity(in_integers, quantized(images)).min() > 0.99


@pytest.mark.parametrize("activation", [nn.SELU, nn.CELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardsigmoid])
def test_the_protocol_of_gdfq_rounds_behind_every_activation(activation: type[nn.Module]) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), activation(), nn.AlphaDropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    folded = fold_batch_norm(capture(network, (3, 8, 8)))
    assert not any("dropout" in node.name for node in folded.graph.nodes)
    placed = place_quantizers(folded, BitWidths(4, 4), "gdfq")
    assert len(quantized_tensors(placed)) == 1


def test_a_shared_grid_has_the_widest_of_its_members_bits() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            features = torch.relu(self.first(images)).mean((2, 3), keepdim=True)
            both = torch.cat([features, torch.relu(self.second(features))], 1)
            return self.fc(both[:, 4:].flatten(1))

    placed = place_quantizers(fold_batch_norm(capture(Last(), (3, 8, 8))), BitWidths(4, 4), "genie")
    bits = {name: placed.get_submodule(name).bits for name in quantized_tensors(placed)}
    assert sorted(bits.values()) == [8, 8]
