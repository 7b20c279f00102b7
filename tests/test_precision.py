"""Convolutions in float32: asked for inside alone, whatever happens there."""

import pytest
import torch

from causal_dfq.precision import float32_convolutions


def setting() -> str:
    return str(torch.backends.cudnn.conv.fp32_precision)


def fail_inside(seen: list[str]) -> None:
    with float32_convolutions():
        seen.append(setting())
        raise ValueError("inside")


def test_the_setting_is_put_back_after_an_error_too() -> None:
    before, seen = setting(), []
    with pytest.raises(ValueError, match="inside"):
        fail_inside(seen)
    assert seen == ["ieee"]
    assert setting() == before
