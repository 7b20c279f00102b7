"""The check of a file before it is written: what it takes for rounding, and what it refuses with its first layer."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import torch
from torch import nn

import causal_dfq
from causal_dfq.errors import ExportError
from causal_dfq.export import integer_graph, onnx_file
from causal_dfq.export.integer_graph import Requantize
from causal_dfq.export.onnx_file import ExportOptions, export_graph, export_onnx
from causal_dfq.export.verify import compare_layers, synthetic_images
from tests.export.conftest import built, finished_network
from tests.networks import ALL, Residual


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize("network", ALL)
def test_every_layer_of_the_file_is_within_a_step_of_the_simulation(network: type[nn.Module], bits: str) -> None:
    quantized = finished_network(network(), bits)
    graph = export_graph(quantized, ExportOptions())
    layers = compare_layers(
        built(quantized), graph, quantized.graph_module, synthetic_images(quantized.record.options, 8)
    )
    assert len(layers) >= 4
    assert max(layer.steps for layer in layers) <= 1.001
    assert max(layer.share for layer in layers) < 0.01


@pytest.mark.parametrize(
    ("bits", "layer", "words"),
    [
        ("w8a8", "conv2d_1", "first at conv2, by"),
        ("w8a8", "linear", "its logits differ"),
        ("w8a32", "conv2d_1", "its logits differ"),
    ],
)
def test_a_wrong_file_is_told_with_its_first_layer(bits: str, layer: str, words: str, tmp_path: Path) -> None:
    finished_network(Residual(), bits).save(tmp_path)
    quantized = causal_dfq.load(tmp_path)
    graph = export_graph(quantized, ExportOptions())
    model = built(quantized)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == f"weight_quantizers.{layer}.codes")
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    with pytest.raises(ExportError, match=words):
        compare_layers(model, graph, quantized.graph_module, synthetic_images(quantized.record.options, 8))


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_codes_that_are_all_off_by_one_are_no_rounding(bits: str) -> None:
    quantized = finished_network(Residual(), bits)
    graph, model = export_graph(quantized, ExportOptions()), built(quantized)
    producer = next(node for node in model.graph.node if node.output[0] == "requantize_1")
    point = next(tensor for tensor in model.graph.initializer if tensor.name == producer.input[2])
    shifted = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(point) + numpy.uint8(1), "shifted")
    model.graph.initializer.append(shifted)
    producer.input[2] = "shifted"
    with pytest.raises(ExportError, match=r"first at .*, by 1\.0 steps of its grid"):
        compare_layers(model, graph, quantized.graph_module, synthetic_images(quantized.record.options, 8))


def test_a_file_of_a_wrong_graph_is_told_by_the_simulation(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Requantize):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return super().forward(0.9 * values)

    monkeypatch.setattr(integer_graph, "Requantize", Wrong)
    with pytest.raises(ExportError, match="first at images"):
        export_onnx(finished_network(Residual()), out)
    assert not out.exists()


class OwnProduct(nn.Module):
    """Its head is a product of its own with a parameter, which runs between integers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.conv(images)).mean((2, 3))
        return self.fc(torch.relu(torch.addmm(self.bias, features, self.weight)))


def test_a_product_whose_weights_the_runtime_would_round_by_itself_is_refused(out: Path) -> None:
    with pytest.raises(ExportError, match=r"addmm at .* has its weights in float.*put nn\.Linear in its place"):
        export_onnx(finished_network(OwnProduct()), out)
    assert not out.exists()


class OwnHead(OwnProduct):
    """The same product gives the logits, which no runtime rounds."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, torch.relu(self.conv(images)).mean((2, 3)), self.weight)


def test_a_product_that_stays_in_float_is_written(out: Path) -> None:
    exported = export_onnx(finished_network(OwnHead()), out)
    assert exported.parity.agreement == 1.0
    assert max(layer.share for layer in exported.parity.layers) < 0.01


class Shares(nn.Module):
    """A softmax over the branches of each group, of what a layer writes; branches are the dimension given."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.branches, self.fc = nn.Linear(16, 24), nn.Linear(16, 5)
        self.dimension = dimension

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.norm(self.conv(images))).mean((2, 3))
        shares = self.branches(features).view(-1, 2, 3, 4).softmax(self.dimension)
        return self.fc(features * shares.flatten(1)[:, :16])


@pytest.mark.parametrize("choices", [{}, {"reduce_range": True}, {"profile": "tensorrt"}])
@pytest.mark.parametrize("dimension", [1, 2, 3, -1, -3])
def test_shares_in_the_runtimes_own_unit_are_no_fault(dimension: int, choices: dict[str, Any], out: Path) -> None:
    exported = export_onnx(finished_network(Shares(dimension), "w8a8"), out, **choices)
    assert exported.parity.cosine > 0.999
    if not choices and dimension != 2:
        assert max(layer.share for layer in exported.parity.layers) < 0.01


def test_a_product_whose_weights_the_runtime_rounds_is_told_by_its_codes(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(onnx_file._INSTEAD, "addmm")
    with pytest.raises(ExportError, match="first at"):
        export_onnx(finished_network(OwnProduct()), out)


def test_a_file_whose_tensors_have_other_names_is_not_taken_for_right() -> None:
    quantized = finished_network(Residual())
    graph, model = export_graph(quantized, ExportOptions()), built(quantized)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = name.replace("requantize", "other")
    with pytest.raises(ExportError, match="cannot be compared"):
        compare_layers(model, graph, quantized.graph_module, synthetic_images(quantized.record.options, 8))


def test_a_file_whose_logits_are_others_is_not_written(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = finished_network(Residual())
    whole = export_onnx(quantized, out).parity
    out.unlink()
    parity = dataclasses.replace(whole, cosine=0.5, agreement=0.4)
    monkeypatch.setattr(onnx_file, "verify", lambda *arguments: parity)
    with pytest.raises(ExportError, match=r"cosine of 0\.500 to those, and 40 %"):
        export_onnx(quantized, out)
    assert not out.exists()
