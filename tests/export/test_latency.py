"""Latency of every runtime, network and batch; sizes of what would be written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from causal_dfq.errors import ConfigError
from causal_dfq.export import latency
from causal_dfq.export.latency import FLOAT, QUANTIZED, file_sizes, measure_latency, runtimes
from causal_dfq.export.onnx_file import export_onnx, float_model
from tests.export.conftest import finished_network
from tests.networks import Residual


def test_every_runtime_is_measured_with_both_networks_at_every_batch() -> None:
    measured = measure_latency(finished_network(Residual()), threads=1, rounds=2, batches=(1, 3))
    found = measured.latencies
    assert not measured.refused
    cases = {(each.runtime, each.network, each.batch) for each in found}
    assert cases == {
        (name, network, batch) for name in runtimes() for network in (FLOAT, QUANTIZED) for batch in (1, 3)
    }
    assert len(found) == len(cases)
    assert all(each.milliseconds > 0 for each in found)


def test_a_runtime_that_refuses_a_network_is_named_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: bytes, threads: int) -> Callable[[Tensor], object]:
        raise RuntimeError("no such type")

    both = {**runtimes(), "Other 1.0": refuse}
    monkeypatch.setattr(latency, "runtimes", lambda: both)
    measured = measure_latency(finished_network(Residual()), threads=1, rounds=1, batches=(1,))
    assert measured.refused == {"Other 1.0": "no such type"}
    assert {each.runtime for each in measured.latencies} == both.keys() - {"Other 1.0"}


def test_the_float_file_holds_no_more_than_the_network() -> None:
    model = float_model(finished_network(Residual()))
    assert not any(node.metadata_props for node in model.graph.node)


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    quantized = finished_network(Residual(), "w4a8")
    sizes = file_sizes(quantized)
    assert sizes.fast == export_onnx(quantized, tmp_path / "fast.onnx").size
    assert sizes.packed == export_onnx(quantized, tmp_path / "packed.onnx", "packed").size
    assert sizes.float32 > 0


def test_weights_in_float_are_refused_as_in_a_file() -> None:
    quantized = finished_network(Residual(), "w32a8")
    with pytest.raises(ConfigError, match="w32a8: the weights are in float"):
        file_sizes(quantized)
    with pytest.raises(ConfigError, match="w32a8: the weights are in float"):
        measure_latency(quantized, threads=1, rounds=1, batches=(1,))
