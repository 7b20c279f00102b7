"""Convolutions in float32: asked for inside alone, whatever happens there."""

import pytest
import torch

from causal_dfq.precision import float32_convolutions


def test_the_setting_is_put_back_after_an_error_too() -> None:
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    with pytest.raises(ValueError, match="inside"), float32_convolutions():
        assert convolutions.fp32_precision == "ieee"
        raise ValueError("inside")
    assert convolutions.fp32_precision == before
