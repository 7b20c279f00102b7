"""Memory order is a view and comes back; without a compiler the formulas stay plain torch."""

import pytest
import torch

from causal_dfq import fusion as fusion_module
from causal_dfq.fusion import Formula, from_memory_order, fusion, in_memory_order, like_in_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 5), (1, 3, 1, 1), (7, 4), (6,)])
def test_memory_order_is_a_view_and_comes_back(shape: tuple[int, ...]) -> None:
    values = torch.arange(torch.Size(shape).numel()).reshape(shape).float()
    layouts = [torch.contiguous_format, *([torch.channels_last] if len(shape) == 4 else [])]
    for layout in layouts:
        laid = values.contiguous(memory_format=layout)
        flat = in_memory_order(laid).reshape(-1)
        assert flat.data_ptr() == laid.data_ptr()
        assert torch.equal(from_memory_order(flat, laid), values)
        assert torch.equal(in_memory_order(like_in_memory(values, laid)).reshape(-1), flat)


def test_a_slice_is_copied_and_keeps_its_values() -> None:
    values = torch.randn(4, 6)[:, ::2]
    assert torch.equal(from_memory_order(in_memory_order(values), values), values)


def test_a_formula_is_compiled_within_fusion_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(function) or function)
    monkeypatch.setattr(fusion_module, "can_compile", lambda device: True)
    monkeypatch.setattr(fusion_module, "SMALLEST_COMPILED", 2)

    def double(values: torch.Tensor) -> torch.Tensor:
        return values * 2

    doubled = Formula(double)
    assert torch.equal(doubled(torch.ones(3)), torch.full((3,), 2.0))
    assert compiled == []
    with fusion(CPU) as is_fused:
        assert is_fused
        assert torch.equal(doubled(torch.ones(3)), torch.full((3,), 2.0))
        assert torch.equal(doubled(torch.ones(2)), torch.full((2,), 2.0))
        assert torch.equal(doubled(torch.ones(1)), torch.full((1,), 2.0))
    assert compiled == [double]
    assert not fusion_module.is_fusing()


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_module, "can_compile", lambda device: False)
    with fusion(CPU) as is_fused:
        assert not is_fused
        assert torch.equal(Formula(lambda values: values + 1)(torch.zeros(2)), torch.ones(2))


def test_a_tensor_too_small_is_not_what_a_formula_is_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: pytest.fail("was compiled"))
    monkeypatch.setattr(fusion_module, "can_compile", lambda device: True)
    with fusion(CPU):
        assert torch.equal(Formula(lambda values: values + 1)(torch.zeros(9)), torch.ones(9))
