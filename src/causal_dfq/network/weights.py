"""Weights from a file, without unpickling: safetensors only."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from causal_dfq.errors import WeightsError
from causal_dfq.files import exists_as_file

_NAMED_KEYS = 5
_PREFIXES = ("module.", "model.", "_orig_mod.")
PICKLED = frozenset({".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle"})


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, under the names in the file.

    Raises:
        WeightsError: missing, of another format, or damaged.
    """
    if not exists_as_file(path):
        raise WeightsError(f"the weights {path} do not exist or cannot be read")
    if path.suffix != ".safetensors":
        raise WeightsError(refusal(path))
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from error


def refusal(path: Path) -> str:
    """Why a checkpoint of another format is not read, and how to convert it."""
    target = str(path.with_suffix(".safetensors"))
    return (
        f"{path} is no .safetensors file: other checkpoints need unpickling, which can run any code that is in "
        "them, so they are refused. Convert it where you trust it: "
        'python -c "import torch, safetensors.torch as s; '
        f"c = torch.load({str(path)!r}, map_location='cpu', weights_only=True); c = c.get('state_dict', c); "
        f's.save_file({{k: v.clone().contiguous() for k, v in c.items()}}, {target!r})"'
    )


_OLD_DENSE_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")


def named_as_in(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the network's names: without the prefixes of wrappers that all keys share, where it knows none."""
    own = network.state_dict()
    prefix: str | None = ""
    while state and prefix is not None and not any(key in own for key in state):
        prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in state)), None)
        state = {key.removeprefix(prefix or ""): tensor for key, tensor in state.items()}
    # The hub's files of torchvision's DenseNets keep names that torchvision itself mends when it downloads them.
    return {key if key in own else _OLD_DENSE_NAME.sub(r"\1\2", key): tensor for key, tensor in state.items()}


def load_weights(network: nn.Module, path: Path) -> None:
    """Puts the weights of a .safetensors file into a network.

    Raises:
        WeightsError: the file cannot be read, or a key is missing, unknown or of another shape.
    """
    put_weights(network, read_weights(path), path)


def put_weights(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Puts weights that were read from a file into a network; the path is for the messages.

    Raises:
        WeightsError: a key is missing, unknown or of another shape.
    """
    state = named_as_in(network, state)
    own = network.state_dict()
    for name, tensor in own.items():
        check_has_values(name, tensor)
    # BatchNorm's counter is of no use in evaluation mode, and many files leave it out.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    other_shape = [
        f"{key!r} is {_shape(state[key])} in the file, {_shape(own[key])} in the network"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        *_listed("missing in the file", [repr(key) for key in missing]),
        *_listed("unknown to the network", [repr(key) for key in unexpected]),
        *_listed("of another shape", other_shape),
    ]
    if problems:
        raise WeightsError(f"the weights {path} do not fit the network: " + "; ".join(problems))
    network.load_state_dict(state, strict=False)


# Buffers that training has found, not the network's author.
_STATISTICS = frozenset({"running_mean", "running_var"})


def check_finite(network: nn.Module) -> None:
    """Refuses a network with NaN or infinite values, or without values. A buffer may be infinite: a mask is.

    Raises:
        WeightsError: names the first tensor that is not finite.
    """
    buffers = dict(network.named_buffers())
    for name, tensor in [*network.named_parameters(), *buffers.items()]:
        check_has_values(name, tensor)
        is_learned = name not in buffers or name.rpartition(".")[2] in _STATISTICS
        wrong = ~torch.isfinite(tensor) if is_learned else torch.isnan(tensor)
        if wrong.any():
            count = int(wrong.sum())
            raise WeightsError(
                f"the weights hold {count} NaN or infinite values in {name!r}: the network cannot be quantized; "
                "check the file or the training that it comes from"
            )


def check_has_values(name: str, tensor: Tensor) -> None:
    """Refuses a tensor that has a shape, or not even that, but no values yet.

    Raises:
        WeightsError: names it.
    """
    if nn.parameter.is_lazy(tensor):
        raise WeightsError(f"{name!r} has no shape yet: run the network once on an image before it is quantized")
    if tensor.is_meta:
        raise WeightsError(f"{name!r} is on the device meta and has no values: load the network's weights first")


def _listed(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    rest = len(entries) - _NAMED_KEYS
    return [f"{title}: " + ", ".join(entries[:_NAMED_KEYS]) + (f" and {rest} more" if rest > 0 else "")]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
