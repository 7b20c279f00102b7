"""A network from a .pt2 file of torch.export, without unpickling."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from causal_dfq.errors import NetworkError, WeightsError

_HOW_TO_EXPORT = (
    "export it again from the plain network, with the batch size left open: torch.export.save(torch.export.export("
    "network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), 'network.pt2')"
)


def load_exported(path: Path) -> tuple[fx.GraphModule, tuple[int, int, int] | None]:
    """The module of a .pt2 file, and its input shape (C, H, W) where the file tells.

    Raises:
        NetworkError: missing or not readable by this version of torch.
        WeightsError: the file holds pickled objects.
    """
    if not path.is_file():
        raise NetworkError(f"{path} does not exist")
    try:
        content = _without_pickles(path)
        program = torch.export.load(content)
        module = program.module()
    except WeightsError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NetworkError(f"{path} cannot be read as a file of torch.export: {first}; {_HOW_TO_EXPORT}") from error
    assert isinstance(module, fx.GraphModule)
    return module, _input_shape(program)


def _without_pickles(path: Path) -> io.BytesIO:
    """A copy of the archive that torch can read without unpickling anything.

    The example inputs are the one pickled entry of a usual file; nobody needs them, and torch takes an
    empty entry for none.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as clean:
        for entry in archive.infolist():
            data = b"" if "/sample_inputs/" in entry.filename else archive.read(entry)
            if entry.filename.endswith("_config.json"):
                _refuse_pickled_payload(path, json.loads(data))
            elif entry.filename.endswith((".pkl", ".pickle")):
                raise WeightsError(
                    f"{path} holds a pickled object ({entry.filename}), which is refused; {_HOW_TO_EXPORT}"
                )
            clean.writestr(entry.filename, data)
    copy.seek(0)
    return copy


def _refuse_pickled_payload(path: Path, config: Any) -> None:
    entries = config.get("config", config) if isinstance(config, dict) else {}
    for name, payload in entries.items():
        is_custom = isinstance(payload, dict) and str(payload.get("path_name", "")).startswith("custom_obj")
        if isinstance(payload, dict) and (payload.get("use_pickle") or is_custom):
            raise WeightsError(f"{path} holds {name!r} as a pickled object, which is refused; {_HOW_TO_EXPORT}")


def _input_shape(program: torch.export.ExportedProgram) -> tuple[int, int, int] | None:
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.ndim == 4:
                _, channels, height, width = value.shape
                if all(isinstance(side, int) for side in (channels, height, width)):
                    return int(channels), int(height), int(width)
    return None
