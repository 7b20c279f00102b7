"""Sums and products of all pairs of codes are those of ONNX Runtime's kernels, ties and all."""

import numpy
import pytest
import torch
from onnx import TensorProto, helper

from causal_dfq.export.verify import onnxruntime_session
from causal_dfq.quantizer.modules import IntegerAddition, IntegerProduct, OfTwoGrids

CODES = 256


def runtime_codes(operator: str, scales: torch.Tensor, zero_points: torch.Tensor) -> numpy.ndarray:
    """What the runtime makes of all pairs, (256, 256)."""
    names = ("first", "second", "result")
    constants = [
        helper.make_tensor(f"{name}_{kind}", dtype, [], [float(value) if kind == "scale" else int(value)])
        for kind, dtype, values in (("scale", TensorProto.FLOAT, scales), ("zero", TensorProto.UINT8, zero_points))
        for name, value in zip(names, values, strict=True)
    ]
    nodes = [
        helper.make_node("DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_real"])
        for name in names[:2]
    ]
    nodes.append(helper.make_node(operator, ["first_real", "second_real"], ["result_real"]))
    nodes.append(helper.make_node("QuantizeLinear", ["result_real", "result_scale", "result_zero"], ["result"]))
    shapes = [helper.make_tensor_value_info(name, TensorProto.UINT8, [CODES, CODES]) for name in names]
    graph = helper.make_graph(nodes, "pair", shapes[:2], shapes[2:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    codes = numpy.arange(CODES, dtype=numpy.uint8)
    first, second = numpy.repeat(codes[:, None], CODES, 1), numpy.repeat(codes[None], CODES, 0)
    (found,) = onnxruntime_session(model.SerializeToString()).run(None, {"first": first, "second": second})
    return found


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="other processors have other kernels"
)
@pytest.mark.parametrize(("operator", "kind"), [("Add", IntegerAddition), ("Mul", IntegerProduct)])
def test_every_pair_gives_the_runtimes_code(operator: str, kind: type[OfTwoGrids]) -> None:
    random = torch.Generator().manual_seed(0)
    codes = torch.arange(float(CODES))
    differing = 0
    for trial in range(60):
        scales = 0.01 + 0.04 * torch.rand(3, generator=random)
        if operator == "Mul":
            scales[2] = scales[0] * scales[1] * (80 + 100 * torch.rand((), generator=random))
        elif trial % 2:
            # Every other sum of codes lies between two of them.
            scales[1], scales[2] = scales[0], 2 * scales[0]
        zero_points = torch.randint(200, (3,), generator=random).float()
        first = ((codes - zero_points[0]) * scales[0]).repeat_interleave(CODES).view(CODES, CODES)
        second = ((codes - zero_points[1]) * scales[1]).repeat(CODES, 1)
        found = kind(scales, zero_points)(first, second) / scales[2] + zero_points[2]
        expected = torch.from_numpy(runtime_codes(operator, scales, zero_points)).float()
        differing += int((found.round().clamp(0, CODES - 1) != expected).sum())
    assert differing == 0
