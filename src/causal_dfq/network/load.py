"""Where a network comes from: a name, a factory or a file."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from causal_dfq.errors import NetworkError, WeightsError
from causal_dfq.network.error_text import first_line
from causal_dfq.network.exported import load_exported
from causal_dfq.network.weights import (
    PICKLED,
    check_finite,
    load_weights,
    named_as_in,
    put_weights,
    read_weights,
    refusal,
)
from causal_dfq.zoo.bundled import BUNDLED, build, load_bundled, read_card

_FORMS = "torchvision:NAME, timm:NAME, package.module:factory, or a .pt2 file of torch.export"
_ONLY_TENSORS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_ANY_PICKLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
# What a network's builder is given, by name.
_BuilderOptions = dict[str, Any]
# Torchvision's builders set these for the hub's weights alone, but mean and std are the hub's for a file as well.
_OPTIONS_OF_HUB: dict[str, _BuilderOptions] = {
    name: {"transform_input": True, "init_weights": False}
    for name in ("googlenet", "inception_v3", "quantized_googlenet", "quantized_inception_v3")
}
# Layers of GoogLeNet and Inception that training alone uses.
_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")


@dataclass(frozen=True)
class LoadedNetwork:
    """A network in evaluation mode, where it has one, on the CPU, and its preprocessing where its source tells it.

    `mean` and `std` normalize pixels in [0, 1], one value a channel.
    """

    network: nn.Module
    input_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def load_network(reference: str, weights: Path | None = None) -> LoadedNetwork:
    """The network that a user names, with the weights of a .safetensors file where one is given.

    Raises:
        NetworkError: unknown, cannot be built, or its pretrained weights cannot be had.
        WeightsError: the weights do not fit, are not finite, or would need unpickling.
    """
    loaded = _load(reference, weights)
    check_finite(loaded.network)
    return loaded


def _load(reference: str, weights: Path | None) -> LoadedNetwork:
    if reference in BUNDLED:
        return _load_bundled(reference, weights)
    if reference.endswith(".pt2"):
        if weights is not None:
            raise NetworkError(f"{reference} carries its own weights: leave --weights out")
        module, shape = load_exported(Path(reference))
        return LoadedNetwork(module, shape)
    source, separator, name = reference.partition(":")
    if separator and source == "torchvision":
        return _load_torchvision(name, weights)
    if separator and source == "timm":
        return _load_timm(name, weights)
    _refuse_file_of_weights(Path(reference))
    if separator and name:
        return _load_factory(source, name, weights)
    raise NetworkError(
        f"the network {reference!r} is not known{_close(reference, list(BUNDLED))}; "
        f"bundled are {', '.join(BUNDLED)}; else give {_FORMS}"
    )


def _refuse_file_of_weights(path: Path) -> None:
    how = f"NETWORK names the architecture ({_FORMS}) and --weights the file"
    if path.suffix == ".safetensors":
        raise NetworkError(f"{path} holds weights without a network: {how}")
    if path.suffix in PICKLED:
        raise WeightsError(f"{refusal(path)}; then {how}")
    if path.suffix == ".onnx":
        raise NetworkError(f"{path} is an ONNX file, which is not read here: give the network of PyTorch, as {_FORMS}")


def _load_bundled(name: str, weights: Path | None) -> LoadedNetwork:
    card = read_card(name)
    if weights is None:
        network = load_bundled(name)
    else:
        network = build(name)
        load_weights(network, weights)
    return LoadedNetwork(network.eval(), card.input_shape, card.mean, card.std)


def _load_torchvision(name: str, weights: Path | None) -> LoadedNetwork:
    from torchvision.models import VisionTransformer, get_model, get_model_weights, list_models

    if name not in list_models():
        raise NetworkError(f"torchvision has no model {name!r}{_close(name, list_models())}")
    default = get_model_weights(name).DEFAULT if len(get_model_weights(name)) else None
    transforms = default.transforms() if default is not None else None
    shape = mean = std = None
    if transforms is not None and hasattr(transforms, "crop_size"):
        size = int(transforms.crop_size[0])
        shape, mean, std = (3, size, size), tuple(transforms.mean), tuple(transforms.std)
    if weights is None:
        network = _pretrained(f"torchvision:{name}", lambda: get_model(name, weights=default))
    else:
        create = functools.partial(get_model, name, weights=None, **_OPTIONS_OF_HUB.get(name, {}))
        network = _with_weights(f"torchvision:{name}", create, weights, _options_of_torchvision)
    if isinstance(network, VisionTransformer):
        shape = (3, network.image_size, network.image_size)
    return LoadedNetwork(network.eval(), shape, mean, std)


def _options_of_torchvision(network: nn.Module, state: dict[str, Tensor]) -> _BuilderOptions:
    """What the weights of a file ask of torchvision's builder, where that is not what the network was built with."""
    from torchvision.models import GoogLeNet, Inception3, VisionTransformer

    # What is built with the hub's weights and saved may have lost these heads.
    if isinstance(network, GoogLeNet | Inception3) and not any(key.startswith(_AUXILIARY_HEADS) for key in state):
        return {"aux_logits": False}
    positions = state.get("encoder.pos_embedding")
    if isinstance(network, VisionTransformer) and positions is not None and positions.ndim == 3:
        # A square of patches, and the class token.
        patches = positions.shape[1] - 1
        if patches > 0 and patches + 1 != network.seq_length:
            return {"image_size": math.isqrt(patches) * network.patch_size}
    return {}


def _load_timm(name: str, weights: Path | None) -> LoadedNetwork:
    try:
        import timm
    except ImportError as error:
        if error.name == "timm":
            raise NetworkError("timm is not installed: pip install timm") from error
        raise NetworkError(f"timm is installed but cannot be imported: {first_line(error)}; install it anew") from error
    if not timm.is_model(name.split(".")[0]):
        raise NetworkError(f"timm has no model {name!r}{_close(name, timm.list_models())}")
    if weights is None:
        network = _pretrained(f"timm:{name}", lambda: timm.create_model(name, pretrained=True))
    else:
        create = functools.partial(timm.create_model, name, pretrained=False)
        network = _with_weights(f"timm:{name}", create, weights)
    config = timm.data.resolve_model_data_config(network)
    return LoadedNetwork(network.eval(), tuple(config["input_size"]), tuple(config["mean"]), tuple(config["std"]))


def _load_factory(module_name: str, factory_name: str, weights: Path | None) -> LoadedNetwork:
    reference = f"{module_name}:{factory_name}"
    try:
        module = importlib.import_module(module_name)
    # A script without a main guard exits, and the user's module can raise anything.
    except (Exception, SystemExit) as error:
        raise NetworkError(
            f"{reference}: the module {module_name!r} cannot be imported: {type(error).__name__}: {first_line(error)}; "
            "give package.module:factory, with a module that imports without errors"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        names = [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name))]
        raise NetworkError(f"{reference}: {module_name} has no function {factory_name!r}{_close(factory_name, names)}")
    network = _built(reference, factory)
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{reference} must return an nn.Module, but it gave {type(network).__name__}")
    if weights is not None:
        load_weights(network, weights)
    # A module of torch.export refuses; the capture sets its mode.
    with contextlib.suppress(NotImplementedError):
        network.eval()
    return LoadedNetwork(network)


def _built(reference: str, factory: Callable[[], Any]) -> nn.Module:
    try:
        network: nn.Module = factory()
    # A factory that reads the command line exits.
    except (Exception, SystemExit) as error:
        raise NetworkError(f"{reference} cannot be built: {type(error).__name__}: {first_line(error)}") from error
    return network


def _pretrained(reference: str, factory: Callable[[], Any]) -> nn.Module:
    try:
        with _without_unpickling():
            network: nn.Module = factory()
    except Exception as error:
        raise NetworkError(
            f"the pretrained weights of {reference} cannot be had ({first_line(error)}): give a local file with "
            "--weights FILE.safetensors"
        ) from error
    return network


@contextlib.contextmanager
def _without_unpickling() -> Iterator[None]:
    """Lets torch.load take tensors alone from a download, whatever its caller in a library asks for."""
    before = {name: os.environ.pop(name, None) for name in (_ONLY_TENSORS, _ANY_PICKLE)}
    os.environ[_ONLY_TENSORS] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _with_weights(
    reference: str,
    create: Callable[..., Any],
    weights: Path,
    options_for: Callable[[nn.Module, dict[str, Tensor]], _BuilderOptions] = lambda network, state: {},
) -> nn.Module:
    """A network for the weights of a file, with as many classes as its last layer has there.

    `options_for`: what else the file asks of the builder, told from the network without options and the file's weights.
    """
    read = read_weights(weights)
    network = _built(reference, create)
    state = named_as_in(network, read)
    options = {**_classes_in(network, state), **options_for(network, state)}
    if options:
        # A large one is not held twice.
        del network
        network = _built(reference, lambda: create(**options))
    put_weights(network, state, weights)
    return network


def _classes_in(network: nn.Module, state: dict[str, Tensor]) -> _BuilderOptions:
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    last = f"{layers[-1]}.weight" if layers else ""
    own = dict(network.named_parameters()).get(last)
    if last in state and own is not None and state[last].ndim == own.ndim and len(state[last]) != len(own):
        return {"num_classes": len(state[last])}
    return {}


def _close(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; close names: {', '.join(close)}" if close else ""
