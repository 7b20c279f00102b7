"""The simulated network as a file of torch.export, which torch loads without this package."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path

import torch

from causal_dfq.errors import ExportError
from causal_dfq.files import check_target, write_atomically
from causal_dfq.network.error_text import first_line
from causal_dfq.quantized import QuantizedNetwork


def export_torch(quantized: QuantizedNetwork, path: str | Path, *, force: bool = False) -> Path:
    """Writes a .pt2 file of ATen operations with a dynamic batch: images (N, C, H, W) -> logits (N, K).

    Raises:
        ExportError: torch.export refuses the network.
        OutputError: the file exists and `force` is not set, or it cannot be written.
    """
    path = Path(path)
    check_target(path, force)
    # Two images: a batch of one would be taken for a constant.
    images = torch.zeros(2, *quantized.record.options.input_shape)
    content = io.BytesIO()
    try:
        program = torch.export.export(
            copy.deepcopy(quantized.graph_module).cpu(),
            (images,),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            strict=False,
        )
        with warnings.catch_warnings():
            # Of weights that share memory with others, which are saved as they should be.
            warnings.simplefilter("ignore")
            torch.export.save(program, content)
    except Exception as error:
        raise ExportError(f"torch.export cannot write the network: {first_line(error)}") from error
    # Its own writer turns a full disk into an error of another kind.
    write_atomically(path, lambda temporary: temporary.write_bytes(content.getvalue()))
    return path
