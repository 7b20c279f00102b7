"""Finished networks without training: calibrated on noise, then frozen."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from causal_dfq.config import make_options
from causal_dfq.export.onnx_file import ExportOptions, export_graph, onnx_model
from causal_dfq.pipeline import finish, prepare, start_run
from causal_dfq.quantized import QuantizedNetwork
from tests.networks import trained

Finish = Callable[..., QuantizedNetwork]


def finished_network(
    network: nn.Module, bits: str = "w8a8", protocol: str = "deploy", side: int = 8
) -> QuantizedNetwork:
    options = make_options(
        bits=bits, protocol=protocol, effort="fast", input_shape=(3, side, side), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    prepared = prepare(trained(network), options)
    run = start_run(prepared, options, torch.device("cpu"))
    images = torch.randn(64, 3, side, side, generator=torch.Generator().manual_seed(0))
    run.views.calibrate([images], options.pixel_bounds)
    return finish(prepared, run, options, {}, 0.0)


def built(quantized: QuantizedNetwork, **choices: object) -> onnx.ModelProto:
    options = ExportOptions(**choices)  # type: ignore[arg-type]
    return onnx_model(export_graph(quantized, options), quantized, options)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "network.onnx"
