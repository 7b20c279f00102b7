"""What a finished network is made of, layer by layer, and which layers cost it most."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table
from torch import fx

from causal_dfq.network.operations import attribute, module_path, weight_layer_nodes
from causal_dfq.quantized import QuantizedNetwork
from causal_dfq.quantizer.accumulator import value_grids
from causal_dfq.quantizer.affine import integer_range
from causal_dfq.quantizer.bit_allocation import bytes_of
from causal_dfq.quantizer.modules import FrozenActivationQuantizer, IntegerWeight
from causal_dfq.quantizer.placement import WEIGHT_QUANTIZERS

Range = tuple[float, float]


@dataclass(frozen=True)
class LayerReport:
    """A layer whose weight is rounded.

    `name`: where it is in the user's network; modules that hold several layers, such as attention, have the layer's own
    name behind. `sensitivity`: mean KL of the float network's answers to those with this weight alone rounded to its
    bits, on the images that Q learned on; None where it was not measured. `weight_range`: the lowest and the highest
    weight. `input_range`: what the grid of its input can express, and `input_bits`; None where the input is in float.
    """

    name: str
    bits: int
    weights: int
    size: int
    sensitivity: float | None
    weight_range: Range
    input_bits: int | None
    input_range: Range | None


def inspect_layers(quantized: QuantizedNetwork) -> list[LayerReport]:
    """The layers of a finished network, the most sensitive first."""
    module = quantized.graph_module
    grids = value_grids(module.graph)
    reports = []
    nodes = weight_layer_nodes(module.graph)
    layers_at = Counter(module_path(node) for node in nodes)
    for node in nodes:
        stored = node.args[1]
        weight = attribute(module, str(stored.target)) if isinstance(stored, fx.Node) else None
        if not isinstance(weight, IntegerWeight):
            continue
        assert isinstance(stored, fx.Node)
        values = weight()
        grid = grids.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        quantizer = None if grid is None else attribute(module, grid)
        name = str(stored.target).removeprefix(WEIGHT_QUANTIZERS + ".")
        path = module_path(node)
        reports.append(
            LayerReport(
                path if layers_at[path] == 1 else f"{path} ({name})",
                weight.bits,
                values.numel(),
                bytes_of(values.numel(), weight.bits),
                quantized.record.sensitivities.get(name),
                (float(values.min()), float(values.max())),
                None if quantizer is None else quantizer.bits,
                None if quantizer is None else _grid_range(quantizer),
            )
        )
    return sorted(reports, key=lambda report: -1.0 if report.sensitivity is None else report.sensitivity, reverse=True)


def _grid_range(quantizer: FrozenActivationQuantizer) -> Range:
    lowest, highest = integer_range(quantizer.bits, is_signed=False)
    zero_point, scale = float(quantizer.zero_point), float(quantizer.scale)
    return (lowest - zero_point) * scale, (highest - zero_point) * scale


def layer_table(reports: list[LayerReport]) -> Table:
    """What a person reads."""
    title = f"{sum(report.size for report in reports):,} bytes of weights, the most sensitive first"
    table = Table(title=title, box=None, header_style="bold")
    # Where the space is short, names and then ranges take several lines; a number alone is never cut.
    for column in ("layer", "bits", "bytes", "KL", "weights", "input (bits)"):
        is_one_number = column in ("bits", "bytes", "KL")
        table.add_column(
            column, justify="left" if column == "layer" else "right", no_wrap=is_one_number, overflow="fold"
        )
    for report in reports:
        table.add_row(
            escape(report.name),
            str(report.bits),
            f"{report.size:,}",
            "-" if report.sensitivity is None else f"{report.sensitivity:.1e}",
            _text(report.weight_range),
            "float" if report.input_range is None else f"{_text(report.input_range)} ({report.input_bits})",
        )
    return table


def _text(values: Range) -> str:
    return f"{values[0]:.2g} to {values[1]:.2g}"
