"""Stored weights in types below 8 bits, which a runtime widens when it loads the file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_dfq.quantizer.affine import integer_range


@dataclass(frozen=True)
class PackedType:
    """A type of ONNX, and the first opset that casts from it."""

    kind: ir.DataType
    opset: int


INT2, INT4 = PackedType(ir.DataType.INT2, 25), PackedType(ir.DataType.INT4, 21)


def packed_types(bits: set[int]) -> list[PackedType]:
    """The types for weights of these bits, the narrowest first; weights that need 8 have none."""
    types = []
    if any(width <= INT2.kind.bitwidth for width in bits):
        types.append(INT2)
    if any(INT2.kind.bitwidth < width <= INT4.kind.bitwidth for width in bits):
        types.append(INT4)
    return types


def pack_weights(model: ir.Model, types: list[PackedType]) -> None:
    """Stores every INT8 weight in the first type that holds it, a cast to INT8 behind; the numbers stay the same.

    A constant is cast once, when a runtime loads the file; from then on it computes as with weights in INT8.
    """
    codes = {
        node.inputs[0]
        for node in model.graph
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].is_initializer()
    }
    for stored in sorted(codes, key=lambda value: str(value.name)):
        assert stored.const_value is not None
        values = stored.const_value.numpy()
        packed = next((packed for packed in types if _holds(packed.kind, values)), None)
        if stored.dtype != ir.DataType.INT8 or packed is None:
            continue
        name = f"{stored.name}.packed"
        tensor = ir.Tensor(values.astype(packed.kind.numpy()), dtype=packed.kind, name=name)
        narrow = ir.val(name, const_value=tensor)
        cast = ir.node("Cast", [narrow], {"to": ir.DataType.INT8}, name=f"{stored.name}.cast")
        model.graph.register_initializer(narrow)
        model.graph.insert_before(model.graph[0], cast)
        stored.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[str(stored.name)]


def _holds(kind: ir.DataType, values: npt.NDArray[np.integer]) -> bool:
    lowest, highest = integer_range(kind.bitwidth, is_signed=True)
    return bool(values.min() >= lowest and values.max() <= highest)
