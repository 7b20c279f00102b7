"""How much of an exported file ONNX Runtime computes in integers."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

# Operators that multiply; what is fused of them has these names.
_INTEGER = {"Conv": ("QLinearConv",), "Gemm": ("QGemm",), "MatMul": ("QLinearMatMul", "MatMulIntegerToFloat")}


@dataclass(frozen=True)
class Fusion:
    """Of `total` convolutions and matrix products, `fused` read and write integers in ONNX Runtime on this machine."""

    fused: int
    total: int


def fusion_in_onnxruntime(model: onnx.ModelProto) -> Fusion:
    """What ONNX Runtime makes of a file when it loads it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        counts = Counter(node.op_type for node in onnx.load(optimized, load_external_data=False).graph.node)
    return Fusion(
        fused=sum(counts[name] for names in _INTEGER.values() for name in names),
        total=sum(node.op_type in _INTEGER for node in model.graph.node),
    )
