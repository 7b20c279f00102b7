"""An exported file: standard, integer inside, and the simulation's numbers in ONNX Runtime."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import torch
from torch import nn

import causal_dfq
from causal_dfq.errors import ConfigError, ExportError, OutputError
from causal_dfq.export.onnx_file import ExportOptions, export_graph, export_onnx, onnx_model
from causal_dfq.export.torch_file import export_torch
from causal_dfq.export.verify import onnxruntime_session, synthetic_images, verify
from tests.export.conftest import built, finished_network
from tests.export.test_integer_graph import Moving
from tests.networks import ALL, Residual


def initializers(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_the_file_agrees_with_the_simulated_network(out: Path) -> None:
    quantized = finished_network(Residual())
    exported = export_onnx(quantized, out)
    assert exported.path == out
    assert exported.size == out.stat().st_size
    assert exported.parity.agreement == 1.0
    assert exported.parity.cosine > 0.9999
    assert (exported.fusion.fused, exported.fusion.total) == (3, 3)
    for count in (1, 5):
        images = synthetic_images(quantized.record.options, count, seed=3)
        (logits,) = onnxruntime_session(out.read_bytes()).run(None, {"images": images.numpy()})
        with torch.no_grad():
            expected = quantized(images).numpy()
        assert numpy.abs(logits - expected).max() < 0.02 * expected.std()


def test_weights_biases_and_activations_are_integers() -> None:
    model = built(finished_network(Residual(), "w4a4"))
    kinds = initializers(model)
    codes = {name: kind for name, kind in kinds.items() if name.endswith("codes")}
    assert set(codes.values()) == {onnx.TensorProto.INT8, onnx.TensorProto.INT32}
    assert sum(kind == onnx.TensorProto.INT32 for kind in codes.values()) == 3
    # No weight is left in float: what is, are scales.
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert all(len(tensor.dims) <= 1 for tensor in floats)
    clips = [node for node in model.graph.node if node.op_type == "Clip"]
    # The image has 8 bits; the five others 4.
    assert len(clips) == 4
    assert model.opset_import[0].version == 18


@pytest.mark.parametrize(
    ("bits", "kind", "opset"),
    [("w4a8", onnx.TensorProto.INT4, 21), ("w3a8", onnx.TensorProto.INT4, 21), ("w2a8", onnx.TensorProto.INT2, 25)],
)
def test_packed_weights_have_their_own_type_and_the_same_numbers(bits: str, kind: int, opset: int) -> None:
    quantized = finished_network(Residual(), bits)
    fast, packed = built(quantized), built(quantized, storage="packed")
    assert list(initializers(packed).values()).count(kind) == 3
    assert packed.opset_import[0].version == opset
    images = synthetic_images(quantized.record.options, 8).numpy()
    logits = [
        onnxruntime_session(model.SerializeToString()).run(None, {"images": images})[0] for model in (fast, packed)
    ]
    numpy.testing.assert_array_equal(*logits)
    assert len(packed.SerializeToString()) < len(fast.SerializeToString()) + 600


def test_a_packed_file_of_8_bits_is_the_fast_one() -> None:
    quantized = finished_network(Residual())
    assert initializers(built(quantized, storage="packed")) == initializers(built(quantized))


def test_the_profile_for_tensorrt_has_signed_activations_without_zero_points() -> None:
    quantized = finished_network(Residual())
    options = ExportOptions(profile="tensorrt")
    graph = export_graph(quantized, options)
    model = onnx_model(graph, quantized, options)
    points = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("zero_point")}
    used = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert all(points[name].dtype == numpy.int8 and not points[name].any() for name in used)
    # Its parser takes no INT32 there.
    kinds = initializers(model)
    assert onnx.TensorProto.INT32 not in [kinds.get(node.input[0]) for node in model.graph.node]
    images = synthetic_images(quantized.record.options, 16)
    assert verify(model, graph, quantized.graph_module, images, graph).agreement == 1.0


def test_parity_is_told_against_the_network_as_it_was_quantized() -> None:
    quantized = finished_network(Residual(), "w4a4")
    options = ExportOptions(profile="tensorrt")
    graph = export_graph(quantized, options)
    found = verify(
        onnx_model(graph, quantized, options),
        graph,
        quantized.graph_module,
        synthetic_images(quantized.record.options, 16),
        graph,
    )
    # Tensors without negative values have lost half of their steps.
    assert found.cosine < 0.999


def test_the_profile_for_tensorrt_refuses_weights_with_zero_points(out: Path) -> None:
    with pytest.raises(ConfigError, match="protocol gdfq"):
        export_onnx(finished_network(Residual(), "w4a4", "gdfq"), out, profile="tensorrt")


@pytest.mark.parametrize("network", [*ALL, Moving])
@pytest.mark.parametrize(
    ("bits", "protocol", "storage"),
    [("w4a4", "gdfq", "packed"), ("w2a4", "genie", "packed"), ("w8a32", "deploy", "fast")],
)
def test_other_protocols_and_widths_are_written_too(
    network: type[nn.Module], bits: str, protocol: str, storage: str, out: Path
) -> None:
    quantized = finished_network(network(), bits, protocol)
    exported = export_onnx(quantized, out, storage)  # type: ignore[arg-type]
    assert exported.parity.cosine > 0.97
    onnx.checker.check_model(out, full_check=True)


def test_metadata_tell_what_a_runtime_must_know_and_nothing_of_this_machine() -> None:
    model = built(finished_network(Residual(), "w4a8"), storage="packed")
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert found["bits"] == "w4a8"
    assert found["protocol"] == "deploy"
    assert json.loads(found["mean"]) == [0.5] * 3
    assert found["causal_dfq"] == causal_dfq.__version__
    assert str(Path(causal_dfq.__file__).parent).encode() not in model.SerializeToString()


def test_a_file_that_exists_is_kept_unless_forced(out: Path) -> None:
    out.write_text("mine")
    quantized = finished_network(Residual())
    with pytest.raises(OutputError, match="exists"):
        export_onnx(quantized, out)
    assert out.read_text() == "mine"
    export_onnx(quantized, out, force=True)
    onnx.checker.check_model(out, full_check=True)


def test_weights_in_float_are_refused(out: Path) -> None:
    with pytest.raises(ConfigError, match="w32a8: the weights are in float"):
        export_onnx(finished_network(Residual(), "w32a8"), out)


def test_an_unknown_storage_is_refused(out: Path) -> None:
    with pytest.raises(ConfigError, match="storage 'small'"):
        export_onnx(finished_network(Residual()), out, "small")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("choices", "bits"),
    [({"profile": "tensorrt"}, "w8a8"), ({"reduce_range": True}, "w8a8"), ({"reduce_range": True}, "w4a8")],
)
def test_files_for_other_runtimes_are_written(choices: dict[str, Any], bits: str, out: Path) -> None:
    exported = export_onnx(finished_network(Residual(), bits), out, **choices)
    assert exported.parity.cosine > 0.999
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    if "reduce_range" in choices:
        codes = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
        assert max(int(numpy.abs(weight.astype(int)).max()) for weight in codes if weight.ndim > 1) <= 64


@pytest.mark.parametrize("write", [export_onnx, export_torch])
def test_places_that_no_file_can_have_are_refused(write: Callable[..., object], tmp_path: Path) -> None:
    quantized = finished_network(Residual())
    with pytest.raises(OutputError, match="is a folder"):
        write(quantized, tmp_path, force=True)
    with pytest.raises(OutputError, match="does not exist"):
        write(quantized, tmp_path / "none" / "network")
    with pytest.raises(OutputError, match="cannot be written"):
        write(quantized, tmp_path / ("long" * 100))


class Unwritable(nn.Module):
    """An operation that ONNX lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.erfinv(0.9 * torch.tanh(self.norm(self.conv(images))))
        return self.fc(features.mean((2, 3)))


class UnwritableBehindChunks(Unwritable):
    """The same, behind tensors that come in a list."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.cat(images.chunk(3, 1)[::-1], 1))


@pytest.mark.parametrize("network", [Unwritable, UnwritableBehindChunks])
def test_an_operation_without_a_form_in_onnx_is_named(network: type[nn.Module], out: Path) -> None:
    with pytest.raises(ExportError, match=r"erfinv.*has no form in ONNX"):
        export_onnx(finished_network(network()), out)
    assert not out.exists()


class Deep(nn.Module):
    """Twelve residual blocks: what one of the first ones rounds otherwise has grown large at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)) for _ in range(12)
        )
        self.fc = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.stem(images))
        for block in self.blocks:
            features = torch.relu(features + block(features))
        return self.fc(features.mean((2, 3)))


class Dense(nn.Module):
    """Eight layers that read all before them, each behind a BatchNorm that no layer absorbs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 * (n + 1)) for n in range(8))
        self.layers = nn.ModuleList(nn.Conv2d(8 * (n + 1), 8, 3, padding=1) for n in range(8))
        self.fc = nn.Linear(72, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features = torch.cat([features, layer(torch.relu(norm(features)))], 1)
        return self.fc(features.mean((2, 3)))


class Gated(nn.Module):
    """Eight blocks with two gates each, of what they scale and of its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if n == 0 else 8, 8, 3, padding=1) for n in range(8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(8))
        self.gates = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(8))
        self.fc = nn.Linear(8, 10)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for number, (layer, norm, gate) in enumerate(zip(self.layers, self.norms, self.gates, strict=True)):
            features = norm(layer(features))
            features = features * torch.sigmoid(features)
            is_pooled = number % 2 == 0
            mean = nn.functional.adaptive_avg_pool2d(features, 1) if is_pooled else features.mean((2, 3), keepdim=True)
            features = features * torch.sigmoid(gate(mean))
        return self.fc(features.mean((2, 3)))


def test_means_over_all_places_are_pools_that_runtimes_compute_in_integers() -> None:
    operators = [node.op_type for node in built(finished_network(Gated(), side=16)).graph.node]
    assert operators.count("GlobalAveragePool") == 8
    # Of the features behind the last block, without their axes.
    assert operators.count("ReduceMean") == 1


@pytest.mark.parametrize("network", [Deep, Dense, Gated])
@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
def test_file_and_simulation_are_the_same_numbers(network: type[nn.Module], bits: str) -> None:
    quantized = finished_network(network(), bits, side=16)
    images = synthetic_images(quantized.record.options, 128, seed=5)
    (logits,) = onnxruntime_session(built(quantized).SerializeToString()).run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = quantized(images).numpy()
    numpy.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * numpy.abs(expected).max())


class GlobalMaximum(nn.Module):
    """Pools by the largest value, beside whose place it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(images)).relu().flatten(2).max(2)[0])


class Recurrent(nn.Module):
    """Reads its features row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rows, self.fc = nn.Conv2d(3, 8, 3), nn.LSTM(6, 7, batch_first=True), nn.Linear(7, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        states, _ = self.rows(self.conv(images).mean(2))
        return self.fc(states[:, -1])


def test_the_largest_value_keeps_the_grid_that_it_was_rounded_to(out: Path) -> None:
    quantized = finished_network(GlobalMaximum(), "w4a4")
    assert [tensor.name for tensor in quantized.quantized_tensors() if tensor.kind == "activation"] == [
        "activation_quantizers.images",
        "activation_quantizers.relu",
    ]
    exported = export_onnx(quantized, out)
    assert (exported.fusion.fused, exported.fusion.total) == (2, 2)
    assert exported.parity.cosine > 0.9999


def test_what_an_operation_of_several_results_reads_and_gives_is_rounded() -> None:
    quantized = finished_network(Recurrent(), "w8a8")
    rounded = {tensor.name for tensor in quantized.quantized_tensors() if tensor.kind == "activation"}
    assert len(rounded) >= 3


class Decomposing(nn.Module):
    """An operation of several results that ONNX has no form for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = self.conv(images).flatten(2)
        return self.fc(torch.linalg.eigh(rows @ rows.transpose(1, 2))[0])


def test_an_operation_of_several_results_without_a_form_is_named(out: Path) -> None:
    with pytest.raises(ExportError, match=r"linalg_eigh"):
        export_onnx(finished_network(Decomposing(), "w8a8"), out)
    assert not out.exists()
