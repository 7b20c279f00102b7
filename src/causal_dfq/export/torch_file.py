"""The simulated network as a file of torch.export, which torch loads without this package."""

from __future__ import annotations

from pathlib import Path

import torch

from causal_dfq.errors import OutputError
from causal_dfq.files import write_atomically
from causal_dfq.quantized import QuantizedNetwork


def export_torch(quantized: QuantizedNetwork, path: str | Path, *, force: bool = False) -> Path:
    """Writes a .pt2 file of ATen operations with a dynamic batch: images (N, C, H, W) -> logits (N, K).

    Raises:
        OutputError: the file exists and `force` is not set, or it cannot be written.
    """
    path = Path(path)
    if path.exists() and not force:
        raise OutputError(f"{path} exists: give another name, or --force to replace it")
    # Two images: a batch of one would be taken for a constant.
    images = torch.zeros(2, *quantized.record.options.input_shape)
    program = torch.export.export(
        quantized.graph_module, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    write_atomically(path, lambda temporary: torch.export.save(program, temporary))
    return path
