"""Quantize a trained vision network to low bits without any data."""

from causal_dfq.errors import CausalDFQError
from causal_dfq.export.onnx_file import export_onnx
from causal_dfq.pipeline import StepReport, quantize
from causal_dfq.quantized import QuantizedNetwork, load
from causal_dfq.version import __version__

__all__ = ["CausalDFQError", "QuantizedNetwork", "StepReport", "__version__", "export_onnx", "load", "quantize"]
