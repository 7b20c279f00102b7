"""Quantize a trained vision network to low bits without any data."""

__version__ = "0.1.0"

from causal_dfq.errors import CausalDFQError
from causal_dfq.pipeline import StepReport, quantize
from causal_dfq.quantized import QuantizedNetwork, load

__all__ = ["CausalDFQError", "QuantizedNetwork", "StepReport", "__version__", "load", "quantize"]
