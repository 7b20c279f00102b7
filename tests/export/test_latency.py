"""Latency of every runtime, network and batch; sizes of what would be written."""

from pathlib import Path

from causal_dfq.export.latency import FLOAT, QUANTIZED, file_sizes, measure_latency, runtimes
from causal_dfq.export.onnx_file import export_onnx
from tests.export.conftest import finished_network
from tests.networks import Residual


def test_every_runtime_is_measured_with_both_networks_at_every_batch() -> None:
    found = measure_latency(finished_network(Residual()), threads=1, rounds=2, batches=(1, 3))
    cases = {(each.runtime, each.network, each.batch) for each in found}
    assert cases == {
        (name, network, batch) for name in runtimes() for network in (FLOAT, QUANTIZED) for batch in (1, 3)
    }
    assert len(found) == len(cases)
    assert all(each.milliseconds > 0 for each in found)


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    quantized = finished_network(Residual(), "w4a8")
    sizes = file_sizes(quantized)
    assert sizes.fast == export_onnx(quantized, tmp_path / "fast.onnx").size
    assert sizes.packed == export_onnx(quantized, tmp_path / "packed.onnx", "packed").size
    assert sizes.float32 > 0
