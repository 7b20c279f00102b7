"""What `inspect` and the summary tell of a finished network, and that nothing of it is cut off."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from torch import Tensor, nn

import causal_dfq
from causal_dfq import cli
from causal_dfq.inspection import LayerReport, inspect_layers, layer_table
from causal_dfq.summary import summary_table
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


def wide_reports() -> list[LayerReport]:
    """Layers whose names and numbers are as long as they get."""
    return [
        LayerReport(
            f"features.denseblock3.denselayer{number}.conv2",
            bits=4,
            weights=2 * 102_760_448,
            size=102_760_448,
            sensitivity=9.1e-05,
            weight_range=(-1.2e-05, 3.4e-05),
            input_bits=8,
            input_range=(-5.6e-05, 7.8e-05),
        )
        for number in (21, 22)
    ]


@pytest.mark.parametrize("width", [80, 70])
def test_every_number_is_shown_in_few_columns_beside_a_long_name(
    capsys: pytest.CaptureFixture[str], width: int
) -> None:
    Console(width=width).print(layer_table(wide_reports()))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for number in ("4", "102,760,448", "9.1e-05", "-1.2e-05", "3.4e-05", "-5.6e-05", "7.8e-05", "(8)"):
        assert words.count(number) == 2, number
    first_words = "".join(line.split()[0] for line in lines[2:])
    assert "features.denseblock3.denselayer21.conv2" in first_words


def test_table_is_not_fitted_where_standard_output_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(cli, "output", Console(width=80))
    cli.print_table(layer_table(wide_reports()))
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2
    for row in rows:
        assert "102,760,448  9.1e-05  -1.2e-05 to 3.4e-05  -5.6e-05 to 7.8e-05 (8)" in row


def test_long_path_is_shown_to_its_end_in_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("/", "runs", "of_a_network_with_a_very_long_name", "and_of_one_more_with_bits_w4a4")
    Console(width=40).print(summary_table(finished_network(Residual()), folder))
    assert str(folder) in "".join(capsys.readouterr().out.split())
