"""A network from a .pt2 file of torch.export, without unpickling."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, fx

from causal_dfq.errors import NetworkError, WeightsError
from causal_dfq.files import exists_as_file
from causal_dfq.network.archive import HOW_TO_EXPORT, safe_archive
from causal_dfq.network.error_text import first_line


def load_exported(path: Path) -> tuple[fx.GraphModule, tuple[int, int, int] | None]:
    """The module of a .pt2 file, and its input shape (C, H, W) where the file tells.

    Raises:
        NetworkError: missing, not readable by this version of torch, or of a fixed batch size.
        WeightsError: the file holds something else than tensors and a plain graph.
    """
    if not exists_as_file(path):
        raise NetworkError(f"{path} does not exist or cannot be read")
    try:
        program = torch.export.load(safe_archive(path))
        module = program.module()
    except WeightsError:
        raise
    except Exception as error:
        raise NetworkError(
            f"{path} cannot be read as a file of torch.export: {first_line(error)}; {HOW_TO_EXPORT}"
        ) from error
    assert isinstance(module, fx.GraphModule)
    images = _images(program)
    if images is not None and isinstance(images.shape[0], int):
        raise NetworkError(f"{path} takes {images.shape[0]} images at a time and no other number; {HOW_TO_EXPORT}")
    return module, None if images is None else _image_shape(images)


def _images(program: torch.export.ExportedProgram) -> Tensor | None:
    """What the file notes about its input (N, C, H, W): shape and type without values."""
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.ndim == 4:
                return value
    return None


def _image_shape(images: Tensor) -> tuple[int, int, int] | None:
    _, channels, height, width = images.shape
    if all(isinstance(side, int) for side in (channels, height, width)):
        return int(channels), int(height), int(width)
    return None
