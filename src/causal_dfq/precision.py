"""What float32 means on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def float32_convolutions() -> Iterator[None]:
    """Convolutions of float32 tensors in float32.

    Unless told, cuDNN rounds their inputs to the 11 significant bits of TF32, which tell neither the sums of 8-bit
    codes nor the errors of an 8-bit grid apart. On a CPU nothing changes.
    """
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
