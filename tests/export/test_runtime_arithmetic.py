"""Sums and products of all pairs of codes, and means, are those of ONNX Runtime's kernels, ties and all."""

import pytest
import torch
from onnx import TensorProto, helper

from causal_dfq.export.verify import onnxruntime_session
from causal_dfq.quantizer.runtime_arithmetic import (
    CodeOperation,
    IntegerAddition,
    IntegerChannelSoftmax,
    IntegerMean,
    IntegerProduct,
    IntegerSoftmax,
)

CODES = 256
ON_X86 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="other processors have other kernels"
)


def runtime_codes(
    operator: str, scales: torch.Tensor, zero_points: torch.Tensor, *inputs: torch.Tensor, **attributes: int
) -> torch.Tensor:
    """What the runtime makes of codes, by an operator between grids; the last scale and zero point are the result's."""
    names = [f"input_{number}" for number in range(len(inputs))]
    constants = [
        helper.make_tensor(f"{name}_{kind}", dtype, [], [float(value) if kind == "scale" else int(value)])
        for kind, dtype, values in (("scale", TensorProto.FLOAT, scales), ("zero", TensorProto.UINT8, zero_points))
        for name, value in zip([*names, "result"], values, strict=True)
    ]
    nodes = [
        helper.make_node("DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_real"])
        for name in names
    ]
    nodes.append(helper.make_node(operator, [f"{name}_real" for name in names], ["result_real"], **attributes))
    nodes.append(helper.make_node("QuantizeLinear", ["result_real", "result_scale", "result_zero"], ["result"]))
    given = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, list(codes.shape))
        for name, codes in zip(names, inputs, strict=True)
    ]
    result = helper.make_tensor_value_info("result", TensorProto.UINT8, None)
    graph = helper.make_graph(nodes, "operation", given, [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = {name: codes.to(torch.uint8).numpy() for name, codes in zip(names, inputs, strict=True)}
    (found,) = onnxruntime_session(model.SerializeToString()).run(None, feed)
    return torch.from_numpy(found).float()


def differing(
    operator: str,
    kind: type[CodeOperation],
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    *inputs: torch.Tensor,
    **attributes: int,
) -> int:
    """How many codes of the simulation are not the runtime's."""
    grids = zip(inputs, scales, zero_points, strict=False)
    found = kind(scales, zero_points)(*((codes - zero) * scale for codes, scale, zero in grids))
    codes = (found / scales[-1] + zero_points[-1]).round().clamp(0, CODES - 1)
    return int((codes != runtime_codes(operator, scales, zero_points, *inputs, **attributes)).sum())


@ON_X86
@pytest.mark.parametrize(("operator", "kind"), [("Add", IntegerAddition), ("Mul", IntegerProduct)])
def test_every_pair_gives_the_runtimes_code(operator: str, kind: type[CodeOperation]) -> None:
    random = torch.Generator().manual_seed(0)
    codes = torch.arange(float(CODES))
    first, second = codes.view(-1, 1).expand(CODES, CODES), codes.expand(CODES, CODES)
    for trial in range(60):
        scales = 0.01 + 0.04 * torch.rand(3, generator=random)
        if operator == "Mul":
            scales[2] = scales[0] * scales[1] * (80 + 100 * torch.rand((), generator=random))
        elif trial % 2:
            # Every other sum of codes lies between two of them.
            scales[1], scales[2] = scales[0], 2 * scales[0]
        zero_points = torch.randint(200, (3,), generator=random).float()
        assert differing(operator, kind, scales, zero_points, first, second) == 0


@ON_X86
def test_every_mean_is_the_runtimes() -> None:
    random = torch.Generator().manual_seed(0)
    for trial in range(60):
        scales = 0.01 + 0.04 * torch.rand(2, generator=random)
        if trial % 2:
            scales[1] = scales[0] / 2
        zero_points = torch.randint(200, (2,), generator=random).float()
        side = (2, 3, 4, 7)[trial % 4]
        values = torch.randint(CODES, (4, 32, side, side), generator=random).float()
        assert differing("GlobalAveragePool", IntegerMean, scales, zero_points, values) == 0


@ON_X86
@pytest.mark.parametrize("kind", [IntegerSoftmax, IntegerChannelSoftmax])
def test_softmaxes_are_the_runtimes(kind: type[IntegerSoftmax]) -> None:
    random = torch.Generator().manual_seed(0)
    differences = 0
    for trial in range(40):
        length = (2, 7, 16, 64)[trial % 4]
        scales = torch.tensor([0.02, 2 / length / CODES]) * (0.5 + torch.rand(2, generator=random))
        zero_points = torch.tensor([100.0, float(trial % 3)])
        values = torch.randint(CODES, (100, 5, length), generator=random).float().transpose(kind.dimension, -1)
        differences += differing("Softmax", kind, scales, zero_points, values.contiguous(), axis=kind.dimension)
    # Of 445,000.
    assert differences < 5


@ON_X86
def test_equal_shares_break_ties_as_the_runtime_does() -> None:
    values = torch.full((1, 2), 77.0)
    for steps_in_one in range(100, 400):
        scales = torch.tensor([0.02, 1 / (steps_in_one + 0.5)])
        assert differing("Softmax", IntegerSoftmax, scales, torch.zeros(2), values) == 0
