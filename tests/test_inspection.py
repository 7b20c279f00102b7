"""What `inspect` tells of a finished network."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor, nn

import causal_dfq
from causal_dfq.inspection import inspect_layers
from tests.export.conftest import finished_network
from tests.networks import Residual


def test_every_layer_is_told_with_its_ranges_the_most_sensitive_first(tmp_path: Path) -> None:
    finished = finished_network(Residual(), "w4a8")
    reports = inspect_layers(finished)
    assert len(reports) == 3
    costs = [report.sensitivity for report in reports]
    assert None not in costs
    assert costs == sorted(costs, reverse=True)  # type: ignore[type-var]
    weight = finished.graph_module.get_submodule("weight_quantizers.conv2d")()
    (first,) = [report for report in reports if report.input_range is not None and report.input_range[0] < 0]
    assert first.weight_range == (float(weight.min()), float(weight.max()))
    assert (first.bits, first.weights, first.size) == (4, weight.numel(), weight.numel() // 2)
    # The images' pixels lie between (0 - 0.5) / 0.25 and (1 - 0.5) / 0.25.
    assert first.input_bits == 8
    assert first.input_range == pytest.approx((-2.0, 2.0), abs=0.02)
    finished.save(tmp_path / "run")
    assert inspect_layers(causal_dfq.load(tmp_path / "run")) == reports


def test_a_network_that_was_not_measured_is_told_without_sensitivities() -> None:
    finished = finished_network(Residual())
    finished.record = finished.record.model_copy(update={"sensitivities": {}})
    reports = inspect_layers(finished)
    assert [replace(report, sensitivity=None) for report in reports] == reports


class Attention(nn.Module):
    """Two linear layers in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        seen: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        logits: Tensor = self.head(seen.mean(1))
        return logits


def test_layers_of_one_module_have_names_of_their_own() -> None:
    names = {report.name for report in inspect_layers(finished_network(Attention()))}
    assert names == {"stem", "attention (linear)", "attention (linear_1)", "head"}
